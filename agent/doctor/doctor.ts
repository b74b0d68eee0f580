/** Looks at everything between this host and the control plane, and at what the agent needs here. Changes nothing. */

import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { decodeJoinToken } from "../../shared/wire/join-token.ts";
import type { AgentConfig } from "../config.ts";
import { type Identity, loadIdentity } from "../enrolment/identity.ts";
import { hostAndPort } from "../network/address.ts";
import type { Network } from "../network/network.ts";
import type { HostFacts } from "../sandbox/box-host.ts";
import { checkDatasets, checkDisk, checkSandbox } from "./host-checks.ts";
import { checkPath, type Expected, skip } from "./network-checks.ts";
import { type Check, type Finding, inOrder } from "./report.ts";
import { checkGrpc, checkNats, checkOffer } from "./service-checks.ts";

export interface DoctorWorld {
  network: Network;
  clock: Clock;
  /** Tries a box on this host. */
  probe(): Promise<HostFacts>;
}

export interface Examination {
  /** Empty when there is neither an identity nor a join token that could name it. */
  gateway: string;
  findings: Finding[];
}

/** Before enrolment (with a join token) and after it. */
export async function examine(config: AgentConfig, world: DoctorWorld): Promise<Examination> {
  const subject = subjectOf(config, world.clock);
  const here = await Promise.all([
    checkDisk(config, world.clock),
    checkSandbox(config, () => world.probe()),
    checkDatasets(config),
  ]);
  const there =
    subject.target === undefined
      ? (["name", "proxy", "tcp", "tls", "clock", "nats", "grpc"] satisfies Check[]).map((check) =>
          skip(check, "nothing says where the gateway is"),
        )
      : await examineWay(config, world, subject.target);
  const refusal = there.find(({ check }) => check === "identity");
  const identity = refusal ?? subject.finding;
  const findings = [...there.filter(({ check }) => check !== "identity"), identity, ...here];
  return { gateway: subject.target?.gateway ?? "", findings: inOrder(findings) };
}

interface Target {
  gateway: string;
  expected: Expected;
  identity?: Identity;
}

function subjectOf(config: AgentConfig, clock: Clock): { finding: Finding; target?: Target } {
  const check = "identity" as const;
  try {
    const identity = loadIdentity(config.stateDir);
    if (identity !== undefined) {
      const { gateway, caPem } = identity;
      return {
        finding: validity(identity, clock.wallMs()),
        target: { gateway, expected: { caPem }, identity },
      };
    }
    if (config.joinToken === undefined) {
      const seen = `none in ${config.stateDir}, and no join token to get one with (--join-token, made by "insitu join-token create")`;
      return { finding: { check, level: "fail", seen } };
    }
    const { gateway, caPin, environment } = decodeJoinToken(config.joinToken);
    const seen = `none yet; the join token is for the environment ${environment}, and was not used here`;
    return { finding: { check, level: "ok", seen }, target: { gateway, expected: { caPin } } };
  } catch (err) {
    return { finding: { check, level: "fail", seen: InsituError.from(err).message } };
  }
}

function validity({ id, notAfterMs }: Identity, nowMs: number): Finding {
  const check = "identity" as const;
  const until = new Date(notAfterMs).toISOString();
  const advice =
    "the agent asks to come back when it runs, and somebody has to approve it (insitu agents list)";
  if (notAfterMs <= nowMs)
    return { check, level: "fail", seen: `${id}, whose certificate ended at ${until}: ${advice}` };
  return { check, level: "ok", seen: `${id}, until ${until}` };
}

async function examineWay(
  config: AgentConfig,
  world: DoctorWorld,
  { gateway, expected, identity }: Target,
): Promise<Finding[]> {
  const { network } = world;
  const nats = checkNats(network, config.stateDir, identity);
  const { findings, ends, caPem } = await checkPath(network, hostAndPort(gateway), expected);
  if (caPem === undefined) {
    const why = "the connection to the gateway comes first";
    return [...findings, skip("clock", why), await nats, skip("grpc", why)];
  }
  const { finding, clock, refusal } = await checkGrpc(world, ends, { gateway, caPem, identity });
  const told = await nats;
  const offered = told.level === "skip" ? await checkOffer(network, hostAndPort(gateway), caPem) : undefined;
  const refused: Finding[] =
    refusal === undefined ? [] : [{ check: "identity", level: "fail", seen: `${identity?.id}: ${refusal}` }];
  return [...findings, clock, offered ?? told, finding, ...refused];
}
