/**
 * How a step finds its way out of a box that has no network: from its list of targets to loopback listeners, names and
 * environment. Pure.
 *
 * Each host of the list has a loopback address of its own in the box, and the box's `/etc/hosts` gives it under the
 * host's name: a program that knows nothing of proxies dials the name and port that it was told, and TLS sees the
 * name that it expects. A proxy next to it, for HTTP and SOCKS, serves addresses, which no file of names can turn, and
 * says to whoever asks for another target that it is not on the list.
 */
import { z } from "zod";
import { parseTarget, type Target, targetText } from "../../shared/model/target.ts";

const Endpoint = z.object({ address: z.string(), port: z.number() });

export const NetworkPlan = z.object({
  nsenter: z.string(),
  /** The box has a user namespace, which whoever opens something in its network has to enter as well. */
  userNamespace: z.boolean(),
  targets: z.array(
    z.object({
      host: z.string(),
      port: z.number(),
      /** The host's own and link-local addresses are never dialled, but for one that the site has named itself. */
      mayBeLocal: z.boolean(),
      listen: Endpoint,
    }),
  ),
  proxy: Endpoint,
});
export type NetworkPlan = z.infer<typeof NetworkPlan>;

/** All of 127.0.0.0/8 is loopback; these leave 127.0.0.1 to the step's own servers. */
const PROXY = { address: "127.77.0.1", port: 3128 };
const listenAddress = (index: number): string => `127.77.1.${index + 1}`;

export interface NetworkWishes {
  /** As `StepSpec.network.allow`; at most `TARGETS_MAX`. */
  allow: readonly string[];
  mayBeLocal(target: Target): boolean;
  host: { nsenter: string; mode: "drop" | "user-namespace" };
}

export function planNetwork({ allow, mayBeLocal, host }: NetworkWishes): NetworkPlan {
  const targets = allow.flatMap((text) => parseTarget(text) ?? []);
  const hosts = [...new Set(targets.map((target) => target.host))];
  return {
    nsenter: host.nsenter,
    userNamespace: host.mode === "user-namespace",
    targets: targets.map((target) => ({
      host: target.host,
      port: target.port,
      mayBeLocal: mayBeLocal(target),
      listen: { address: listenAddress(hosts.indexOf(target.host)), port: target.port },
    })),
    proxy: PROXY,
  };
}

/** `/etc/hosts` of the box. */
export function hostsFile({ targets }: NetworkPlan): string {
  const lines = targets
    .filter(({ host, port }) => parseTarget(targetText({ host, port }))?.isAddress === false)
    .map(({ host, listen }) => `${listen.address} ${host}`);
  return ["127.0.0.1 localhost", "::1 localhost", ...new Set(lines), ""].join("\n");
}

/**
 * Names of the list are dialled at their listeners, also by programs that know proxies: what they speak is then passed
 * on byte for byte. Each address of the list has a variable with its listener: `10.20.0.7:5432` is
 * `INSITU_CONNECT_10_20_0_7_5432`.
 */
export function networkEnvironment({ targets, proxy }: NetworkPlan): Record<string, string> {
  const at = `${proxy.address}:${proxy.port}`;
  const env: Record<string, string> = {
    HTTP_PROXY: `http://${at}`,
    HTTPS_PROXY: `http://${at}`,
    ALL_PROXY: `socks5h://${at}`,
  };
  const direct = new Set<string>();
  for (const { host, port, listen } of targets) {
    const isName = parseTarget(targetText({ host, port }))?.isAddress === false;
    direct.add(isName ? host : listen.address);
    if (!isName) env[`INSITU_CONNECT_${variable(host)}_${port}`] = `${listen.address}:${listen.port}`;
  }
  env.NO_PROXY = ["localhost", "127.0.0.1", "::1", ...direct].join(",");
  // Some programs read the small ones alone, others the capitals.
  const small = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];
  for (const name of small) env[name.toLowerCase()] = env[name]!;
  return env;
}

function variable(address: string): string {
  return address.toUpperCase().replaceAll(/[.:]/g, "_");
}
