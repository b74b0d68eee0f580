/**
 * `npm start [-- options]`: sets up what is missing, then runs `insitu dev [options]`.
 *
 * The program runs in this very process, so signals, the terminal and the exit code are its own.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { ensure, ROOT } from "./ensure.mjs";

const { natsServer } = await ensure();
const program = join(ROOT, "dist", "insitu.js");
if (!existsSync(program)) {
  process.stderr.write(`${program} is missing: run \`npm run build\` to see why\n`);
  process.exit(1);
}
process.env.INSITU_NATS_SERVER ??= natsServer;
process.argv = [process.execPath, program, "dev", ...process.argv.slice(2)];
await import(pathToFileURL(program).href);
