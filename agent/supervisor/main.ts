/** The program that outlives the agent: `node insitu-supervisor.js DIRECTORY SOFTWARE`. Started by the agent alone. */
import { renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { systemClock } from "../../shared/system.ts";
import { Supervisor } from "./supervisor.ts";

const [directory = "", socketPath = "", software = ""] = process.argv.slice(2);

function leave(): void {
  rmSync(directory, { recursive: true, force: true });
  if (dirname(socketPath) !== directory) rmSync(dirname(socketPath), { recursive: true, force: true });
  process.exit(0);
}

const supervisor = new Supervisor({ socketPath, software, clock: systemClock, onIdle: leave });
// A terminal's Ctrl-C and hang-up are for the agent; SIGTERM is from whoever ends the whole host.
process.on("SIGINT", () => undefined);
process.on("SIGHUP", () => undefined);
process.once("SIGTERM", () => void supervisor.close("the host stops").then(leave));
await supervisor.start();
const about = { socketPath, pid: process.pid };
writeFileSync(join(directory, "about.new"), JSON.stringify(about), { mode: 0o600 });
renameSync(join(directory, "about.new"), join(directory, "about.json"));
