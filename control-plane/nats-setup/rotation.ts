/**
 * The steps of `insitu nats rotate`: looks whether all who must know of it do, writes the keys, leaves the rest to the
 * replicas. Each step may be made twice; one that was cut off is made again.
 */
import { InsituError } from "../../shared/errors.ts";
import { type Clock, newSecret } from "../../shared/system.ts";
import {
  isStrict,
  type KeyBook,
  type Rotated,
  type RotationState,
  rotated,
  stateOf,
} from "../access/nats-key-book.ts";
import { loadNatsOperator, type NatsOperator, storeKeyBook } from "../access/nats-operator.ts";
import { holdersOf, type NatsUsers } from "../access/nats-users.ts";
import type { ServerView } from "../store/nats-key-census.ts";

const REPLICAS_WAIT_MS = 15_000;
const REPLICAS_RETRY_MS = 500;

export type RotationStep = "add" | "activate" | "retire";

/** What a NATS and its replicas say. */
export interface RotationWorld {
  replicas(): Promise<{ connected: number; answers: { digest: string; told: boolean }[] }>;
  servers(): Promise<ServerView[]>;
  /** How many nats-servers there are to be. */
  serversExpected: number;
  users(): Promise<NatsUsers[]>;
}

export interface Rotation {
  secrets: string;
  clock: Clock;
  /** Opened when there is something to look for, as the user of these keys. */
  open(operator: NatsOperator): Promise<RotationWorld & AsyncDisposable>;
}

export interface RotationView {
  what: Rotated;
  state: RotationState;
  /** Generations that are accepted, the oldest first, and the one that signs. */
  keys: number[];
  signs: number;
}

export interface RotationStatus {
  rotations: RotationView[];
  replicas: { connected: number; current: number };
  /** Names of nats-servers whose operator is not the one of these keys: they need their configuration anew. */
  behind: string[];
  servers: number;
  /** Agents that hold what a former key signed. */
  holders: string[];
}

export async function rotationStatus(rotation: Rotation): Promise<RotationStatus> {
  const operator = await operatorOf(rotation.secrets);
  await using world = await rotation.open(operator);
  const [replicas, servers, users] = await Promise.all([world.replicas(), world.servers(), world.users()]);
  return {
    rotations: viewOf(operator.book),
    replicas: { connected: replicas.connected, current: currentOf(replicas.answers, operator) },
    behind: behindOf(servers, operator),
    servers: Math.max(servers.length, world.serversExpected),
    holders: formerHolders(operator.book, users, nowS(rotation)),
  };
}

/**
 * Makes the step, or sees that it is made.
 *
 * @param force retires a key of accounts although agents hold what it has signed
 * @throws request.invalid when another step comes first; conflict when not all are ready for it
 */
export async function rotate(
  rotation: Rotation,
  { what, step, force }: { what: Rotated; step: RotationStep; force: boolean },
): Promise<void> {
  const operator = await operatorOf(rotation.secrets);
  const given = { secret: newSecret(32), nowS: nowS(rotation) };
  const next = rotated(operator.book, what, step, given);
  if (next === operator.book) return;
  await using world = await rotation.open(operator);
  await requireReplicas(world, operator);
  if (what === "operator" && step !== "add") await requireServers(world, operator);
  if (what === "accounts" && step === "retire" && !force) {
    const holders = formerHolders(operator.book, await world.users(), given.nowS);
    if (holders.length > 0)
      throw notReady(
        `${holders.length} agents hold what the former key has signed: ${some(holders)}. They renew within a day while they are connected; --force cuts those that have not, until they have reached the gateway`,
      );
  }
  await storeKeyBook(rotation.secrets, next);
}

/** Replicas look every two seconds, and then tell NATS. When they take longer, the status says so. */
export async function waitForReplicas(rotation: Rotation, signal: AbortSignal): Promise<void> {
  const operator = await operatorOf(rotation.secrets);
  await using world = await rotation.open(operator);
  const { clock } = rotation;
  const untilMs = clock.monotonicMs() + REPLICAS_WAIT_MS;
  do {
    const { connected, answers } = await world.replicas();
    if (connected > 0 && currentOf(answers, operator) >= connected) return;
    await clock.sleep(REPLICAS_RETRY_MS, signal);
  } while (clock.monotonicMs() < untilMs);
}

/** A replica with other keys would tell NATS of accounts that do not know the newest, and take it from all others. */
async function requireReplicas(world: RotationWorld, operator: NatsOperator): Promise<void> {
  const { connected, answers } = await world.replicas();
  const current = currentOf(answers, operator);
  if (connected > 0 && current >= connected) return;
  throw notReady(
    connected === 0
      ? "no replica is connected to this NATS: keys are changed while at least one runs, which tells NATS of them"
      : `${current} of ${connected} replicas have the keys of this directory of secrets: wait some seconds; give nats-operator.json to replicas with a directory of their own; those of an older version are upgraded first`,
  );
}

async function requireServers(world: RotationWorld, operator: NatsOperator): Promise<void> {
  const servers = await world.servers();
  const behind = behindOf(servers, operator);
  if (servers.length < world.serversExpected)
    throw notReady(
      `${servers.length} of ${world.serversExpected} nats-servers answer: start those that are missing, or name those that there are in --nats-url`,
    );
  if (behind.length === 0) return;
  throw notReady(
    `${some(behind)} trust${behind.length === 1 ? "s" : ""} another operator than these keys: write the configurations anew with insitu nats config, and restart one nats-server after the other (the server itself, when the nats-server is its own)`,
  );
}

function behindOf(servers: readonly ServerView[], operator: NatsOperator): string[] {
  return servers
    .filter((server) => !isCurrent(server, operator))
    .map(({ name }) => name)
    .sort();
}

function isCurrent(server: ServerView, operator: NatsOperator): boolean {
  const wanted = operator.operatorSigningKeys;
  return (
    server.strict === isStrict(operator.book) &&
    server.operatorKeys.length === wanted.length &&
    wanted.every((key) => server.operatorKeys.includes(key))
  );
}

function currentOf(answers: readonly { digest: string; told: boolean }[], operator: NatsOperator): number {
  return answers.filter(({ digest, told }) => told && digest === operator.digest).length;
}

function formerHolders({ accounts }: KeyBook, users: readonly NatsUsers[], atS: number): string[] {
  const former = accounts.keys.filter(({ generation }) => generation < accounts.signs);
  return former.flatMap(({ generation }) => holdersOf(users, generation, atS));
}

export function viewOf(book: KeyBook): RotationView[] {
  return (["accounts", "operator"] as const).map((what) => ({
    what,
    state: stateOf(book[what]),
    keys: book[what].keys.map(({ generation }) => generation),
    signs: book[what].signs,
  }));
}

async function operatorOf(secrets: string): Promise<NatsOperator> {
  const operator = await loadNatsOperator(secrets);
  if (operator) return operator;
  throw new InsituError(
    "not-found",
    `${secrets} holds no keys of NATS: name the server's directory of secrets with --secrets`,
  );
}

function nowS({ clock }: Rotation): number {
  return Math.floor(clock.wallMs() / 1_000);
}

function some(names: readonly string[]): string {
  return `${names.slice(0, 5).join(", ")}${names.length > 5 ? ", …" : ""}`;
}

function notReady(message: string): InsituError {
  return new InsituError("conflict", message, { retryable: true });
}
