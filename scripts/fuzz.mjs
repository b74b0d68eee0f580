/**
 * `npm run fuzz [-- --inputs N]`: N inputs (100,000 unless told) for each decoder, the HTTP API and the gateway.
 * A failure prints the input, made as small as it gets, and the seed and path that give it again.
 */
import { spawn } from "node:child_process";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { ensure, ROOT } from "./ensure.mjs";

const { values } = parseArgs({ options: { inputs: { type: "string", default: "100000" } } });
if (!/^[1-9]\d{0,8}$/.test(values.inputs)) {
  console.error(`--inputs is how many inputs each test makes, a number from 1; not ${values.inputs}`);
  process.exit(2);
}
const { natsServer } = await ensure();
const child = spawn(process.execPath, [join("node_modules", "vitest", "vitest.mjs"), "run", "test/fuzz"], {
  cwd: ROOT,
  stdio: "inherit",
  env: { INSITU_NATS_SERVER: natsServer, ...process.env, INSITU_FUZZ_INPUTS: values.inputs },
});
child.once("exit", (code) => {
  process.exitCode = code ?? 1;
});
