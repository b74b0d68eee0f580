/** Finds out, once, whether this host can box steps: by boxing a program that does nothing. */
import { execFile } from "node:child_process";
import { accessSync, constants, lstatSync, readlinkSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import type { Clock } from "../../shared/system.ts";
import { type BoxHost, type BoxRequest, planBox } from "./box-plan.ts";
import { spawnBoxed } from "./boxed-process.ts";
import { writeImageEtc } from "./image-etc.ts";
import { findLauncher, type Launcher } from "./launcher.ts";
import { planNetwork } from "./network-plan.ts";
import { seccompFilter } from "./seccomp.ts";

const run = promisify(execFile);
const PROBE_TIMEOUT_MS = 10_000;
const SYSTEM = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];
/** Never all of /etc: it holds keys, passwords and the configuration of other programs. */
const ETC = [
  ...["/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime"],
  ...[
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/mime.types",
  ],
];

/**
 * `noWayOut`: why a step cannot be let out to some hosts alone; missing when it can. `noImages`: why none can run a
 * container image; missing when it can.
 */
export type HostFacts =
  | { can: true; host: BoxHost; noWayOut?: string; noImages?: string }
  | { can: false; reason: string };

export interface ProbeOptions {
  path: string;
  user: { uid: number; gid: number };
  clock: Clock;
  architecture?: string;
}

interface Trial {
  clock: Clock;
  argv?: readonly string[];
  image?: BoxRequest["image"];
  network?: BoxRequest["network"];
}

/** Never rejects: what cannot be is said in words. */
export async function probeHost({
  path,
  user,
  clock,
  architecture = process.arch,
}: ProbeOptions): Promise<HostFacts> {
  if (process.platform !== "linux")
    return cannot(`steps can be boxed on Linux alone, and this is ${process.platform}`);
  const seccomp = seccompFilter(architecture);
  if (!seccomp) return cannot(`there is no seccomp filter for ${architecture}`);
  const bwrap = findProgram("bwrap", path);
  if (!bwrap) return cannot("bubblewrap is not installed (Debian, Ubuntu: apt-get install bubblewrap)");
  const mode = process.getuid?.() === 0 ? "drop" : "user-namespace";
  const setpriv = findProgram("setpriv", path);
  if (mode === "drop" && !setpriv)
    return cannot("setpriv is not installed; a root agent needs it (Debian, Ubuntu: util-linux)");
  const host: BoxHost = {
    bwrap,
    version: await versionOf(bwrap),
    mode,
    setpriv: setpriv ?? "",
    nsenter: findProgram("nsenter", path) ?? "",
    seccomp: seccomp.toString("base64"),
    system: SYSTEM.flatMap(describe),
    etc: ETC.filter((file) => describe(file).length > 0),
  };
  const trouble = await tryIt(host, user, { clock });
  if (trouble !== undefined) return cannot(`bubblewrap does not work on this host: ${trouble}`);
  const noWayOut = await tryWayOut(host, user, clock);
  const images = await tryImage(host, user, clock);
  return {
    can: true,
    host: typeof images === "string" ? host : { ...host, launcher: images },
    ...(noWayOut === undefined ? {} : { noWayOut }),
    ...(typeof images === "string" ? { noImages: images } : {}),
  };
}

function cannot(reason: string): HostFacts {
  return { can: false, reason };
}

function describe(path: string): { path: string; link?: string }[] {
  try {
    return lstatSync(path).isSymbolicLink() ? [{ path, link: readlinkSync(path) }] : [{ path }];
  } catch {
    return []; // this distribution has none
  }
}

function findProgram(name: string, path: string): string | undefined {
  return [...path.split(delimiter), "/usr/bin", "/usr/local/bin"]
    .filter((directory) => directory.startsWith("/"))
    .map((directory) => join(directory, name))
    .find((file) => {
      try {
        accessSync(file, constants.X_OK);
        return true;
      } catch {
        return false; // not in this directory
      }
    });
}

async function versionOf(bwrap: string): Promise<string> {
  try {
    const { stdout } = await run(bwrap, ["--version"], { timeout: PROBE_TIMEOUT_MS });
    return stdout.trim().split(" ").at(-1) ?? "";
  } catch {
    return ""; // the trial says what is wrong
  }
}

/** Undefined when a program ran in the box and ended well. */
function tryIt(
  host: BoxHost,
  user: ProbeOptions["user"],
  { clock, argv = ["/bin/sh", "-c", "exit 0"], image, network }: Trial,
): Promise<string | undefined> {
  const limits = { openFiles: 256, fileSizeBytes: 1024 * 1024, tmpBytes: 1024 * 1024 };
  const paths = { cwd: "/", writable: [], readable: [], hidden: [] };
  const request = { argv, env: {}, ...paths, user, limits };
  const boxed = spawnBoxed(planBox(host, { ...request, image, network }), clock);
  const { child } = boxed;
  return new Promise((resolve) => {
    const late = clock.after(PROBE_TIMEOUT_MS, () => child.kill("SIGKILL"));
    let said = "";
    child.stdout!.resume();
    child.stderr!.on("data", (data: Buffer) => {
      said = (said + data.toString("utf8")).slice(-1_000);
    });
    const end = async (code: number | null): Promise<string | undefined> => {
      late.cancel();
      await boxed.traffic();
      const trouble = boxed.trouble();
      if (code === 0 && trouble === undefined) return undefined;
      return said.trim() || (trouble?.code === "NETWORK" ? trouble.message : `it ended with ${code}`);
    };
    child.once("error", (err) => {
      late.cancel();
      resolve(err.message);
    });
    child.once("close", (code) => resolve(end(code)));
  });
}

/** Undefined when a box could be given a listener that answers outside of it. */
async function tryWayOut(
  host: BoxHost,
  user: ProbeOptions["user"],
  clock: Clock,
): Promise<string | undefined> {
  if (host.nsenter === "") return "nsenter is not installed (Debian, Ubuntu: util-linux)";
  const plan = planNetwork({ allow: [], mayBeLocal: () => false, host });
  return await tryIt(host, user, { clock, network: { plan, hosts: "/dev/null" } });
}

/** A message when no program could be started in a box whose root is an image, here an empty one. */
async function tryImage(host: BoxHost, user: ProbeOptions["user"], clock: Clock): Promise<Launcher | string> {
  try {
    const launcher = await findLauncher(host.setpriv);
    const etc = await mkdtemp(join(tmpdir(), "insitu-etc-"));
    try {
      await writeImageEtc(etc, user);
      const argv = [...launcher.sh, "-c", "exit 0"];
      const trouble = await tryIt(host, user, { clock, argv, image: { launcher, entries: [], etc } });
      return trouble ?? launcher;
    } finally {
      await rm(etc, { recursive: true, force: true });
    }
  } catch (err) {
    return err instanceof Error ? err.message : String(err);
  }
}
