/**
 * `insitu nats rotate --what tls`: another authority for the certificates between nodes. Each step changes what `insitu nats
 * config` writes; the next one first asks every node whether it was started with that.
 */
import { isIP } from "node:net";
import { connect, type TLSSocket } from "node:tls";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { RotationState } from "../access/nats-key-book.ts";
import type { RotationStep } from "./rotation.ts";
import { discardRoutes, openRoutes } from "./route-authority.ts";
import { loadSetup, type Routes, type SavedSetup, saveSetup } from "./saved-setup.ts";

const HANDSHAKE_MS = 5_000;

export interface RouteRotationView {
  state: RotationState;
  /** By number, the oldest first. */
  authorities: number[];
  signs: number;
}

/**
 * Makes the step, or sees that it is made.
 *
 * @param force goes on although nodes cannot be asked, or were not started with what the step before wrote
 * @throws request.invalid when another step comes first, or there is but one node; conflict when a node is behind
 */
export async function rotateRoutes(
  options: { secrets: string; clock: Clock; signal: AbortSignal },
  { step, force }: { step: RotationStep; force: boolean },
): Promise<RouteRotationView> {
  const { secrets } = options;
  const setup = await loadSetup(secrets);
  if (setup.hosts.length === 1)
    throw new InsituError(
      "request.invalid",
      "one nats-server has no routes: insitu nats config makes its certificate anew, and insitu ca rotate the authority of it",
    );
  const next = turned(setup.routes, step);
  if (next !== setup.routes) {
    if (!force && step !== "add") await requireNodes(options, setup, step);
    await openRoutes({ ...options, trustDomain: setup.trustDomain }, secrets, next);
    await saveSetup(secrets, { ...setup, routes: next });
  }
  // Also when an earlier attempt ended between the two.
  if (step === "retire")
    for (let number = 1; number < next.signs; number++) await discardRoutes(secrets, number);
  return viewOf(next);
}

function viewOf({ authorities, signs }: Routes): RouteRotationView {
  return { state: stateOf({ authorities, signs }), authorities, signs };
}

function stateOf({ authorities, signs }: Routes): RotationState {
  if (authorities.length === 1) return "steady";
  return authorities[0] === signs ? "added" : "activated";
}

/** The same when the step has been made. */
function turned(routes: Routes, step: RotationStep): Routes {
  const state = stateOf(routes);
  const last = routes.authorities.at(-1)!;
  if (step === "add") {
    if (state === "added") return routes;
    if (state === "activated") throw outOfTurn("the rotation before this one has not ended", "--retire");
    return { authorities: [last, last + 1], signs: last };
  }
  if (state === "steady" && (step === "activate" || last === 1)) throw outOfTurn("no rotation has begun", "");
  if (step === "activate") return { ...routes, signs: last };
  if (state === "added") throw outOfTurn("nodes show certificates of the former authority yet", "--activate");
  return { authorities: [last], signs: last };
}

function outOfTurn(what: string, flag: string): InsituError {
  return new InsituError("request.invalid", `${what}: insitu nats rotate --what tls ${flag}`.trimEnd());
}

/** Before nodes show certificates of the new authority all trust it; before none is trusted else all show them. */
async function requireNodes(
  options: { secrets: string; clock: Clock; signal: AbortSignal },
  setup: SavedSetup,
  step: "activate" | "retire",
): Promise<void> {
  const newest = setup.routes.authorities.at(-1)!;
  const about = { ...options, trustDomain: setup.trustDomain };
  const authority = await openRoutes(about, options.secrets, { authorities: [newest], signs: newest });
  const member = await authority.issue({ dns: [], ips: [] });
  for (const host of setup.hosts) {
    const at = { host, port: setup.ports.route };
    const seen = await shake({ ...at, member, ca: authority.trustedPem, signal: options.signal });
    if (step === "activate" ? seen.lets : seen.shows) continue;
    const where = `${host}:${at.port}`;
    const trouble = seen.trouble === "" ? "" : ` (${seen.trouble})`;
    throw new InsituError(
      "conflict",
      step === "activate"
        ? `the node at ${where} does not trust the new authority yet${trouble}: write the configurations with insitu nats config, copy, and restart one nats-server after the other. --force goes on when nodes cannot be reached from here`
        : `the node at ${where} shows no certificate of the new authority yet${trouble}: write the configurations with insitu nats config, copy, and restart one nats-server after the other. --force goes on when nodes cannot be reached from here`,
      { retryable: true },
    );
  }
}

/** As another node would: whether it is let in with that certificate, and whether the other end shows one of that authority. */
async function shake(options: {
  host: string;
  port: number;
  member: { chainPem: string; keyPem: string };
  ca: string;
  signal: AbortSignal;
}): Promise<{ lets: boolean; shows: boolean; trouble: string }> {
  const { host, port, member, ca, signal } = options;
  const socket: TLSSocket = connect({
    host,
    port,
    ca,
    cert: member.chainPem,
    key: member.keyPem,
    ...(isIP(host) === 0 ? { servername: host } : {}),
    // The answer says it; a node that shows another certificate may trust ours all the same.
    rejectUnauthorized: false,
  });
  try {
    return await new Promise((resolve, reject) => {
      const answer = (lets: boolean, trouble: string): void =>
        resolve({ lets, shows: socket.authorized, trouble });
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
      socket.setTimeout(HANDSHAKE_MS, () => answer(false, "no answer"));
      socket.once("data", (bytes) => answer(bytes.toString().startsWith("INFO"), ""));
      socket.once("error", (err) => answer(false, err.message));
      socket.once("close", () => answer(false, "it closes the connection"));
    });
  } finally {
    socket.destroy();
  }
}
