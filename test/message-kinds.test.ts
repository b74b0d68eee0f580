/** Every kind of message, and the tests that send it twice, late or in the wrong order. A kind without one fails here. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";
import { PeerMessage, RunCommand } from "../control-plane/runs/run-router.ts";
import { DESCRIPTOR } from "../shared/wire/gen/descriptor.ts";
import { BUCKETS, STREAMS } from "../shared/wire/subjects.ts";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
type Reference = readonly [file: string, name: string];

const RUNS = "control-plane/runs/run-service.test.ts";
const SESSIONS = "control-plane/gateway/sessions.test.ts";
const UPLINK = "agent/uplink/uplink.test.ts";
const ATTEMPTS = "agent/leases/attempt-service.test.ts";
const LOGS = "control-plane/store/log-store.test.ts";
const REPORTS: readonly Reference[] = [
  [RUNS, "of reports changes nothing that is committed, also after a restart"],
  [RUNS, "of reports of one epoch does not speak for another"],
  [
    "shared/engine/engine.prop.test.ts",
    "at most one outcome of a step is accepted per epoch, and at most one success in all",
  ],
];
const CONTROL: Reference = [
  UPLINK,
  "what the control plane says twice, late or in the wrong order ends no connection and unsays nothing",
];
const COMMANDS: Reference = [RUNS, "of commands has one effect"];
const PEERS: Reference = [
  RUNS,
  "of what replicas tell each other commits nothing, and renews nothing of what has ended",
];
const WRITES: Reference = [
  "control-plane/store/publish.test.ts",
  "of everything that is written, the answer may be lost: it is asked for again, and stored once",
];
const VALUES: readonly Reference[] = [
  WRITES,
  ["control-plane/store/kv.test.ts", "of many writers with one expectation exactly one wins"],
];

const KINDS: Record<string, readonly Reference[]> = {
  "rpc Enrol": [
    [
      "control-plane/gateway/enrolment.test.ts",
      "may be shown again by the agent that used it, when the answer was lost",
    ],
  ],
  "rpc Renew": [
    [
      "control-plane/gateway/renewal.test.ts",
      "an agent whose answer was lost asks again, and the last answer counts",
    ],
  ],
  "rpc Recover": [
    [
      "control-plane/gateway/renewal.test.ts",
      "an agent whose certificate has expired comes back with its key, once for each approval",
    ],
  ],
  "rpc Check": [
    [
      "control-plane/gateway/sessions.test.ts",
      "asked for by an agent whose session is open disturbs nothing, however often",
    ],
  ],
  "rpc Session": [[SESSIONS, "gives way to a newer one of the same agent, which stays"]],
  "rpc Report": REPORTS,
  "rpc Logs": [
    [LOGS, "is each entry once and in order, however chunks overlap and in whatever order they come"],
  ],
  "agent hello": [[SESSIONS, "for a second hello"]],
  "agent heartbeat": [
    [SESSIONS, "of heartbeats and goodbyes renews what each names, and ends nothing by itself"],
    [RUNS, "of heartbeats renews nothing of what has ended"],
  ],
  "agent goodbye": [
    [SESSIONS, "of heartbeats and goodbyes renews what each names, and ends nothing by itself"],
  ],
  "agent refusedOffer": [
    [
      "control-plane/store/poison-stream.test.ts",
      "of what came over no stream, the same bytes of the same agent are one message",
    ],
  ],
  "server welcome": [CONTROL],
  "server heartbeatReply": [CONTROL],
  "server cancel": [CONTROL, [ATTEMPTS, "a cancel reaches exactly the epoch that it names"]],
  "server roots": [
    ["agent/enrolment/trusted-roots.test.ts", "what is not newer is passed over, whoever has signed it"],
  ],
  "server natsAccess": [CONTROL],

  "server drain": [[UPLINK, "asked to drain twice, it comes back once"]],
  "stream RUNS": [
    [
      "control-plane/store/jetstream-run-store.test.ts",
      "repeated with the same message id is answered like the first, though the run has moved on",
    ],
    ["control-plane/runs/run-projection.test.ts", "a batch that was folded in already changes nothing"],
  ],
  "stream WORK": [
    [ATTEMPTS, "the same offer again is acknowledged and not started again"],
    [
      ATTEMPTS,
      "an offer that comes again after a restart is known, also when its outcome was delivered long ago",
    ],
    [
      "agent/leases/lease-book.prop.test.ts",
      "of one step the agent takes only ever newer grants, each once, whatever comes twice, late or cannot be written",
    ],
  ],
  "stream LOGS": [[LOGS, "is given once when a chunk is stored twice"]],
  "stream RESOURCES": [
    WRITES,
    [
      "control-plane/store/publish.test.ts",
      "a change that another writer made in the time of a lost answer is a conflict",
    ],
  ],
  "stream INBOX": [
    PEERS,
    [
      "control-plane/store/jetstream-inbox.test.ts",
      "a report that was left or could not be accepted is come back to, until it is dealt with",
    ],
  ],
  "stream POISON": [
    [
      "control-plane/store/poison-stream.test.ts",
      "a message is kept with all that is known of it, once, whoever meets it and however often",
    ],
  ],
  "bucket pipeline-versions": VALUES,
  "bucket agents": VALUES,
  "bucket join-tokens": VALUES,
  "bucket api-tokens": VALUES,
  "bucket sessions": [
    ["control-plane/access/sessions.test.ts", "an end that comes while use is being noted stays an end"],
    ...VALUES,
  ],
  "bucket first-admin": [
    [
      "control-plane/access/sessions.test.ts",
      "of many who open the link for the first administrator one is let in, within the hour",
    ],
    ...VALUES,
  ],
  "bucket nats-users": VALUES,
  "bucket approvals": [
    [
      "control-plane/access/approval-desk.test.ts",
      "asked for at one replica, approved at another, and taken once by ten requests at the same time",
    ],
    ...VALUES,
  ],
  "bucket cluster": [
    ...VALUES,
    [RUNS, "and both try at the same moment: one outcome is committed, under one owner"],
  ],
  "bucket idempotency": [
    ["control-plane/store/kv-idempotency-store.test.ts", "of many that claim a key at once, one has it"],
    [
      "control-plane/store/kv-idempotency-store.test.ts",
      "a key that one replica has answered is answered by another one",
    ],
  ],
  "command create": [
    COMMANDS,
    [RUNS, "starts with one seed are one run, also over another owner of its shard"],
  ],
  "command cancel": [COMMANDS],
  "command resolve": [COMMANDS],
  "peer renew": [PEERS],
  "peer verdict": [PEERS],
  "peer stop": [PEERS],
  "peer presence": [
    [
      SESSIONS,
      "of what another replica says of an agent does not part it from the one that it is connected to",
    ],
  ],
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
    "peer presence",
  ];
}

test("every kind of message has tests that send it twice, late or in the wrong order", () => {
  expect(Object.keys(KINDS).sort()).toEqual(kinds().sort());
});

test.each(
  Object.entries(KINDS).flatMap(([kind, references]) =>
    references.map((reference) => [kind, ...reference] as const),
  ),
)("%s: %s has the test: %s", (_, file, name) => {
  expect(readFileSync(join(ROOT, file), "utf8")).toContain(`test("${name}"`);
});
