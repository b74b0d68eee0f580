/** The command `insitu`. */
import { InsituError } from "../../shared/errors.ts";
import { systemClock } from "../../shared/system.ts";
import { readSettings } from "./config.ts";
import { EXIT } from "./exit-codes.ts";
import { processTerminal } from "./terminal.ts";

const argv = process.argv.slice(2);
const INSIST_MS = 500;

/** Whoever reads has seen enough: `insitu runs logs last | head`. */
function onBrokenPipe(err: NodeJS.ErrnoException): void {
  if (err.code === "EPIPE") process.exit(EXIT.brokenPipe);
  throw err;
}

async function main(): Promise<number> {
  if (argv[0] === "server") {
    const { runServer } = await import("../main.ts");
    return runServer(argv.slice(1), process.env);
  }
  process.stdout.on("error", onBrokenPipe);
  process.stderr.on("error", onBrokenPipe);
  const settings = readSettings(process.env, process.cwd());
  const terminal = processTerminal({ colorAllowed: !settings.noColor });
  const interrupt = new AbortController();
  const insist = new AbortController();
  const onInterrupt = (name: NodeJS.Signals) => {
    if (!interrupt.signal.aborted) {
      interrupt.abort(new InsituError("cancelled", name === "SIGINT" ? "interrupted" : `stopped by ${name}`));
      return;
    }
    insist.abort(new InsituError("cancelled", "interrupted again"));
    // Who holds children kills them at once; nothing else is waited for.
    systemClock.after(INSIST_MS, () => process.exit(130));
  };
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, onInterrupt);
  const { runCommand } = await import("./program.ts");
  return runCommand(argv, {
    terminal,
    settings,
    clock: systemClock,
    env: process.env,
    program: process.argv[1] ?? "insitu",
    signal: interrupt.signal,
    insist: insist.signal,
  });
}

main().then(
  (code) => {
    process.exitCode = code;
    // What was written is out: writes are awaited. A stdin that stays open must not keep the process.
    process.exit();
  },
  (thrown: unknown) => {
    process.stderr.write(`insitu: ${InsituError.from(thrown).message}\n`);
    process.exitCode = 1;
  },
);
