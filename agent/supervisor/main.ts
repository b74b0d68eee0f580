/** The program that outlives the agent: `node insitu-supervisor.js DIRECTORY SOFTWARE`. Started by the agent alone. */
import { renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { systemClock } from "../../shared/system.ts";
import { identityOf } from "./process-identity.ts";
import { type About, SUPERVISOR_REVISION } from "./protocol.ts";
import { Supervisor } from "./supervisor.ts";

const [directory = "", socketPath = "", software = ""] = process.argv.slice(2);

function leave(): void {
  rmSync(directory, { recursive: true, force: true });
  if (dirname(socketPath) !== directory) rmSync(dirname(socketPath), { recursive: true, force: true });
  process.exit(0);
}

const supervisor = new Supervisor({ directory, socketPath, software, clock: systemClock, onIdle: leave });
// A terminal's Ctrl-C and hang-up are for the agent; SIGTERM is from whoever ends the whole host.
process.on("SIGINT", () => undefined);
process.on("SIGHUP", () => undefined);
process.once("SIGTERM", () => void supervisor.close("the host stops").then(leave));
await supervisor.start();
const about: About = {
  socketPath,
  pid: process.pid,
  revision: SUPERVISOR_REVISION,
  process: identityOf(process.pid),
};
writeFileSync(join(directory, "about.new"), JSON.stringify(about), { mode: 0o600 });
renameSync(join(directory, "about.new"), join(directory, "about.json"));
