/** `insitu auth login` and `logout`: a session of the command line, which a browser somewhere else vouches for (RFC 8628). */
import { InsituError } from "../../../shared/errors.ts";
import type { ApiClient } from "../client.ts";
import { forgetToken, keepToken } from "../context.ts";
import { EXIT } from "../exit-codes.ts";
import type { Invocation } from "../invocation.ts";
import { instant, oneLine } from "../text.ts";

/** RFC 8628, section 3.5: by so much slower after each `slow_down`. */
const SLOWER_MS = 5_000;
const INTERVAL_MIN_MS = 1_000;
/** How tokens of sessions begin, and no others. */
const SESSION_PREFIX = "inss_";

export async function login(invocation: Invocation): Promise<number> {
  const { output, signal, world } = invocation;
  const client = await invocation.client();
  const device = await client.beginDevice(signal);
  const { userCode, verificationUri, verificationUriComplete } = device;
  await output.note(`Open this address in any browser, and go on only when it shows the code ${oneLine(userCode)}:

  ${oneLine(verificationUriComplete ?? verificationUri)}

Waiting…`);
  const { token, expiresAtMs } = await answerOf(invocation, client, device);
  const { target } = client;
  const file = keepToken(world.settings, target, token);
  const me = await client.whoIs(token, signal);
  if (!output.people) {
    await output.data({ name: me.name, server: target.server, expiresAtMs, file });
    return EXIT.ok;
  }
  await output.line(`signed in as ${oneLine(me.display ?? me.name)} until ${instant(expiresAtMs)}`);
  await output.note(`The token is in ${file}. \`insitu auth logout\` ends it.`);
  if (target.source !== file && !invocation.options.server && world.settings.server === null)
    await output.note(`Here ${target.source} comes first; elsewhere this server is spoken to.`);
  return EXIT.ok;
}

export async function logout(invocation: Invocation): Promise<number> {
  const { output, signal, world } = invocation;
  const client = await invocation.client();
  const { server, token } = client.target;
  if (token === null) {
    await output.note(`There is no token for ${server}.`);
    return EXIT.ok;
  }
  if (!token.startsWith(SESSION_PREFIX)) {
    throw new InsituError(
      "request.invalid",
      `the token for ${server} is not from \`insitu auth login\`; \`insitu tokens revoke NAME\` ends an API token`,
    );
  }
  await client.signOut(signal);
  const file = forgetToken(world.settings, token);
  if (output.people) await output.line(`signed out of ${server}`);
  else await output.data({ server, file });
  return EXIT.ok;
}

async function answerOf(
  { clock, signal }: Invocation,
  client: ApiClient,
  { deviceCode, expiresInMs, intervalMs }: Awaited<ReturnType<ApiClient["beginDevice"]>>,
): Promise<{ token: string; expiresAtMs: number }> {
  const untilMs = clock.monotonicMs() + expiresInMs;
  let pauseMs = Math.max(INTERVAL_MIN_MS, intervalMs);
  while (clock.monotonicMs() < untilMs) {
    await clock.sleep(pauseMs, signal);
    try {
      const answer = await client.askDevice(deviceCode, signal);
      if ("token" in answer) return answer;
      if (answer.status === "too-fast") pauseMs += SLOWER_MS;
    } catch (thrown) {
      signal.throwIfAborted();
      if (!(thrown instanceof InsituError) || !thrown.retryable) throw thrown;
      pauseMs += SLOWER_MS;
    }
  }
  throw new InsituError("timeout", "nobody confirmed the code in time; run `insitu auth login` again");
}
