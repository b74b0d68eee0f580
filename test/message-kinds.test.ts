/**
 * Every kind of message, and what shows that it does no harm when it comes twice, in another order or very late. Kinds come
 * from the schemas: a new one without its three cases fails here.
 *
 * Most have `harmless(…)` (`test/support/harmless.ts`), which declares a test a case. For the others a test is named for each
 * case, and its title says which.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { PeerMessage, RunCommand } from "../control-plane/runs/run-router.ts";
import { ReportPayload } from "../shared/wire/attempt.ts";
import { DESCRIPTOR } from "../shared/wire/gen/descriptor.ts";
import { BUCKETS, STREAMS } from "../shared/wire/subjects.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const TITLE = {
  twice: /\b(twice|again|often|once|same)\b/,
  order: /\b(order|before|after a newer|never)\b/,
  late: /\b(late|later|expired|older|long ago|after a restart)\b/,
};
type Case = keyof typeof TITLE;
/** A test of a file; or the kind whose `harmless` is about the same. */
type Proof = readonly [file: string, title: string] | { as: string };

/** Files with `harmless`. One in a loop over the buckets stands for each of them. */
const DECLARED = ["control-plane/runs/message-kinds.test.ts", "control-plane/store/message-kinds.test.ts"];

const SESSIONS = "control-plane/gateway/sessions.test.ts";
const ENROLMENT = "control-plane/gateway/enrolment.test.ts";
const RENEWAL = "control-plane/gateway/renewal.test.ts";
const UPLINK = "agent/uplink/uplink.test.ts";
const ATTEMPTS = "agent/leases/attempt-service.test.ts";

const all = (proof: Proof): Record<Case, Proof> => ({ twice: proof, order: proof, late: proof });
const HEARTBEATS = all([
  SESSIONS,
  "of heartbeats and goodbyes, sent twice, in another order or late, renews what each names, and ends nothing by itself",
]);
const CONTROL = all([
  UPLINK,
  "what the control plane says twice, late or in the wrong order ends no connection and unsays nothing",
]);
const SECOND_HELLO: Proof = [SESSIONS, "for a hello that comes twice, however late"];
const OPENED_TWICE: Proof = [
  SESSIONS,
  "that is opened twice gives way to the newer one, which stays; what is said late on the older counts for nothing",
];

const KINDS: Record<string, Record<Case, Proof>> = {
  "rpc Enrol": {
    twice: [
      ENROLMENT,
      "may be shown twice by the agent that used it, when the answer was lost, and by nobody who comes late with it",
    ],
    order: ["control-plane/gateway/access.test.ts", "a certificate of ours for an agent that never enrolled"],
    late: [
      ENROLMENT,
      "that is unknown, malformed, expired or used is refused in the same words, and told apart in our log",
    ],
  },
  "rpc Renew": {
    twice: [RENEWAL, "an agent whose answer was lost asks again, and the last answer counts"],
    order: [
      RENEWAL,
      "an agent that renews again before its new key was seen at work keeps the one that it has",
    ],
    late: [
      RENEWAL,
      "a renewed certificate is for the same agent and a new key, and the older one ends when the new one is used",
    ],
  },
  "rpc Recover": all([
    RENEWAL,
    "an agent whose certificate has expired comes back with its key, not before it is approved, and once for each approval, however late it asks again",
  ]),
  "rpc Check": {
    ...all([
      SESSIONS,
      "asked for before, in and after a session disturbs nothing, however often and in whatever order",
    ]),
    late: OPENED_TWICE,
  },
  "rpc Session": {
    twice: OPENED_TWICE,
    order: [SESSIONS, "a heartbeat before the hello"],
    late: OPENED_TWICE,
  },
  "rpc Report": {
    twice: [
      "control-plane/gateway/acknowledgements.prop.test.ts",
      "a number that comes again holds back what comes after it, and never lowers what is acknowledged",
    ],
    order: [
      "control-plane/gateway/intake.test.ts",
      "are acknowledged up to the last that is durable with all before it, though they end out of order",
    ],
    late: [
      "control-plane/runs/run-service.test.ts",
      "of reports changes nothing that is committed, also after a restart",
    ],
  },
  "rpc Logs": all({ as: "stream LOGS" }),
  "agent hello": {
    twice: SECOND_HELLO,
    order: [SESSIONS, "a heartbeat before the hello"],
    late: SECOND_HELLO,
  },
  "agent goodbye": HEARTBEATS,
  "agent refusedOffer": all({ as: "stream POISON" }),
  "server welcome": CONTROL,
  "server heartbeatReply": CONTROL,
  "server cancel": CONTROL,
  "server natsAccess": CONTROL,
  "server roots": all([
    "agent/enrolment/trusted-roots.test.ts",
    "roots that come twice, late or in another order are passed over: what is not newer, whoever has signed it",
  ]),
  "server drain": all([
    UPLINK,
    "asked to drain twice, before other words and late on the connection that it has left, it comes back once",
  ]),
  "stream WORK": {
    twice: [ATTEMPTS, "the same offer again is acknowledged and not started again"],
    order: [ATTEMPTS, "an offer that is replayed after a newer grant of its step is refused and counted"],
    late: [
      ATTEMPTS,
      "an offer that comes again after a restart is known, also when its outcome was delivered long ago",
    ],
  },
  "peer presence": all([
    SESSIONS,
    "of what another replica says of an agent, twice, late or in another order, does not part it from the one that it is connected to",
  ]),
};

/** Names in the gRPC contract, in the streams and buckets, and between replicas. */
function kinds(): string[] {
  const { AgentGateway, AgentMessage, ServerMessage } =
    DESCRIPTOR.nested.insitu.nested.agent.nested.v1.nested;
  const named = (what: string, names: Iterable<string>) => [...names].map((name) => `${what} ${name}`);
  return [
    ...named("rpc", Object.keys(AgentGateway.methods)),
    ...named("agent", AgentMessage.oneofs.message.oneof),
    ...named("server", ServerMessage.oneofs.message.oneof),
    ...named("stream", Object.values(STREAMS)),
    ...named("bucket", Object.values(BUCKETS)),
    ...named(
      "command",
      RunCommand.options.map(({ shape }) => shape.kind.value),
    ),
    ...named(
      "peer",
      PeerMessage.options.map(({ shape }) => shape.kind.value),
    ),
    ...named(
      "report",
      ReportPayload.options.map(({ shape }) => shape.kind.value),
    ),
    "peer presence",
  ];
}

/** Kinds with `harmless`. */
function declared(): string[] {
  return DECLARED.flatMap((file) => {
    const text = source(file);
    const loops = text.includes("of Object.values(BUCKETS)") && /written\(`bucket \$\{bucket\}`/.test(text);
    return [
      ...[...text.matchAll(/^(?:harmless|written)\("([^"]+)"/gm)].map(([, kind]) => kind!),
      ...(loops ? Object.values(BUCKETS).map((bucket) => `bucket ${bucket}`) : []),
    ];
  });
}

const source = (file: string) => readFileSync(join(ROOT, file), "utf8");

test("every kind of message has its three cases", () => {
  expect([...declared(), ...Object.keys(KINDS)].sort()).toEqual(kinds().sort());
});

describe.each(Object.entries(KINDS))("%s", (_, cases) => {
  test.each(Object.entries(cases) as [Case, Proof][])("%s: there is a test that says so", (name, proof) => {
    if ("as" in proof) return expect(declared()).toContain(proof.as);
    const [file, title] = proof;
    expect(title).toMatch(TITLE[name]);
    expect(source(file)).toMatch(
      new RegExp(`(\\btest\\(|\\[)\\s*"${title.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}"`),
    );
  });
});
