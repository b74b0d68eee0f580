/** `insitu agents cordon`, `uncordon` and `drain`. */
import { InsituError } from "../../../shared/errors.ts";
import type { AgentView } from "../../api/schemas.ts";
import { drainLine, refuseOddId } from "../agent-lines.ts";
import type { ApiClient } from "../client.ts";
import { EXIT } from "../exit-codes.ts";
import { type Invocation, parseDuration } from "../invocation.ts";

/** How often a drain is looked at. */
const LOOK_MS = 1_000;

export interface DrainOptions {
  reason?: string;
  deadline?: string;
  force?: boolean;
  wait?: boolean;
  timeout?: string;
}

export async function cordon(
  invocation: Invocation,
  [id = ""]: string[],
  { reason = "" }: { reason?: string },
): Promise<number> {
  refuseOddId(id);
  const client = await invocation.client();
  const agent = await client.cordonAgent(id, { reason }, invocation.signal);
  const { output } = invocation;
  if (!output.people) {
    await output.data(agent);
    return EXIT.ok;
  }
  await output.line(`agent ${agent.id} is cordoned`);
  await output.note(
    agent.connected
      ? "It takes no new work; what it runs goes on."
      : "It is away: it takes no new work from when it is back and hears of it. What it runs goes on.",
  );
  return EXIT.ok;
}

export async function uncordon(invocation: Invocation, [id = ""]: string[]): Promise<number> {
  refuseOddId(id);
  const client = await invocation.client();
  const agent = await client.uncordonAgent(id, invocation.signal);
  if (!invocation.output.people) await invocation.output.data(agent);
  else await invocation.output.line(`agent ${agent.id} may take work again`);
  return EXIT.ok;
}

export async function drain(
  invocation: Invocation,
  [id = ""]: string[],
  options: DrainOptions,
): Promise<number> {
  refuseOddId(id);
  const { reason = "", deadline, force, wait, timeout } = options;
  if (force && deadline === undefined)
    throw new InsituError(
      "request.invalid",
      "--force ends steps that are started once at the deadline: it needs --deadline, like --deadline 30m",
    );
  if (timeout !== undefined && !wait)
    throw new InsituError("request.invalid", "--timeout says how long --wait waits: it needs --wait");
  const withinMs = deadline === undefined ? undefined : parseDuration(deadline, "--deadline");
  const timeoutMs = timeout === undefined ? undefined : parseDuration(timeout, "--timeout");
  const client = await invocation.client();
  const asked = { reason, ...(withinMs === undefined ? {} : { withinMs }), once: force === true };
  const agent = await client.drainAgent(id, asked, invocation.signal);
  const { output } = invocation;
  if (wait) return await untilDrained(invocation, client, agent, timeoutMs);
  if (!output.people) {
    await output.data(agent);
    return EXIT.ok;
  }
  await output.line(`agent ${agent.id} is to be drained; ${drainLine(agent)}`);
  return EXIT.ok;
}

/** Ends with 0 when it is drained, with 1 when somebody has called it off. */
async function untilDrained(
  invocation: Invocation,
  client: ApiClient,
  first: AgentView,
  timeoutMs: number | undefined,
): Promise<number> {
  const { output, clock, signal } = invocation;
  const untilMs = timeoutMs === undefined ? Number.POSITIVE_INFINITY : clock.monotonicMs() + timeoutMs;
  let said = "";
  const say = async (line: string): Promise<void> => {
    if (line !== said && output.people) await output.note(line);
    said = line;
  };
  for (let agent = first; ; ) {
    const { cordon, revoked } = agent;
    if (cordon?.drain == null || revoked) {
      await output.note(
        `agent ${agent.id} is not drained: ${revoked ? "it was revoked" : "somebody has called it off"}`,
      );
      return EXIT.failed;
    }
    if (cordon.state === "drained") {
      if (output.people) await output.line(`agent ${agent.id} is drained`);
      else await output.data(agent);
      return EXIT.ok;
    }
    await say(`agent ${agent.id}: ${drainLine(agent)}`);
    if (clock.monotonicMs() >= untilMs)
      throw new InsituError("timeout", `agent ${agent.id} is not drained in time; the drain goes on`);
    await clock.sleep(Math.min(LOOK_MS, Math.max(0, untilMs - clock.monotonicMs())), signal);
    try {
      agent = await client.getAgent(agent.id, signal);
    } catch (err) {
      // A replica that is restarted meanwhile calls nothing off.
      if (signal.aborted || !(err instanceof InsituError) || !err.retryable) throw err;
      await say(`agent ${agent.id}: the server does not answer; trying again`);
    }
  }
}
