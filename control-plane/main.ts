/** `insitu server`: reads the configuration, runs one replica, stops it when asked. */
import { pino } from "pino";
import { InsituError } from "../shared/errors.ts";
import { systemClock, systemRandom } from "../shared/system.ts";
import { limitCiphers } from "./access/ciphers.ts";
import { loadConfig, SERVER_HELP } from "./config.ts";
import { startServer } from "./server.ts";

/** Gives the exit code: 0 when stopped as asked. Errors are printed, not thrown. */
export async function runServer(argv: string[], env: NodeJS.ProcessEnv): Promise<number> {
  try {
    const config = loadConfig(argv, env);
    if (config === "help") {
      process.stdout.write(SERVER_HELP);
      return 0;
    }
    return await serve(config, env);
  } catch (thrown) {
    const err = InsituError.from(thrown);
    process.stderr.write(`insitu server: ${err.message}\n`);
    if (err.cause instanceof Error && err.code !== "request.invalid")
      process.stderr.write(`  because: ${err.cause.message}\n`);
    if (err.code === "internal")
      process.stderr.write(`${err.cause instanceof Error ? err.cause.stack : err.stack}\n`);
    return err.exitCode;
  }
}

/** Not through the logger: who collects logs is not the administrator. */
async function printFirstAdminLink(server: Awaited<ReturnType<typeof startServer>>): Promise<void> {
  const link = await server.firstAdminLink();
  if (link === null) return;
  process.stdout.write(
    `\nWho opens this address first, within an hour, is the administrator:\n\n  ${link}\n\n`,
  );
}

async function serve(
  config: Exclude<ReturnType<typeof loadConfig>, "help">,
  env: NodeJS.ProcessEnv,
): Promise<number> {
  const log = pino({
    level: config.logLevel,
    redact: ["token", "password", "*.token", "*.password", "headers.authorization"],
  });
  limitCiphers();
  const stop = new AbortController();
  const stopped = new Promise<string>((resolve) => {
    const end = (reason: string): void => {
      resolve(reason);
      stop.abort(new InsituError("cancelled", reason));
    };
    for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, () => end(signal));
    // Started by `insitu dev`: ends with it, however it ended.
    if (process.connected) process.once("disconnect", () => end("its parent has gone"));
  });
  const server = await startServer(
    config,
    { clock: systemClock, random: systemRandom, log, env },
    stop.signal,
  );
  const { url, gatewayPort, onePort } = server;
  if (process.send) process.send({ kind: "ready", url, gatewayPort, onePort });
  // Who starts it as a part of something else reads the context file, and may keep what it prints.
  else await printFirstAdminLink(server);
  const reason = await stopped;
  log.info({ reason }, "server stops");
  await server.close();
  if (process.connected) process.disconnect();
  return 0;
}
