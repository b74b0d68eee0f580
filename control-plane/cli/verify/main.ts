/** `insitu-verify`: verifies a bundle, in one file, with nothing of the server in it. Node is all it needs. */
import { parseArgs } from "node:util";
import { InsituError } from "../../../shared/errors.ts";
import { SOFTWARE_VERSION } from "../../../shared/wire/protocol.ts";
import { BundleVerifier } from "../../evidence/bundle/verify-bundle.ts";
import { linesOf, readTrust } from "../audit/bundle-file.ts";
import { isVerified, verificationData, verificationLines } from "../audit/verification-text.ts";
import { EXIT } from "../exit-codes.ts";

const HELP = `Usage: node insitu-verify.js BUNDLE [options]

Verifies what "insitu audit export" made, without a server and without a network.

  --root FILE         certificate authority of the installation, PEM, as you have it from elsewhere
  --log-key KEY       the ledger's key as you wrote it down: name+id+key, or a file with it
  --checkpoint FILE   a checkpoint that you kept earlier; may be repeated
  --strict            end with 1 also when an item is open, like an attempt without a receipt
  -o json             the findings as JSON
  --version           of the program

Without --root and --log-key the bundle is believed about them, and that is said.
Exit codes: 0 verified, 1 not verified, 2 called wrongly or the file cannot be read.

  node insitu-verify.js patients.bundle --root ca.crt.pem --log-key "$(cat ledger.key)"
`;

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      root: { type: "string" },
      "log-key": { type: "string" },
      checkpoint: { type: "string", multiple: true },
      strict: { type: "boolean", default: false },
      output: { type: "string", short: "o", default: "table" },
      version: { type: "boolean", default: false },
      help: { type: "boolean", short: "h", default: false },
    },
  });
  const [file, ...more] = positionals;
  if (values.help || values.version) {
    process.stdout.write(values.help ? HELP : `${SOFTWARE_VERSION}\n`);
    return EXIT.ok;
  }
  if (file === undefined || more.length > 0 || !["table", "json"].includes(values.output))
    throw new InsituError("request.invalid", "it takes one bundle, and -o table or json; see --help");
  const { root, checkpoint, "log-key": logKey } = values;
  const verifier = new BundleVerifier(await readTrust({ root, checkpoint, logKey }));
  for await (const line of linesOf(file)) verifier.line(line);
  const found = verifier.finish();
  const text =
    values.output === "json"
      ? JSON.stringify(verificationData(found), null, 2)
      : verificationLines(found).join("\n");
  process.stdout.write(`${text}\n`);
  return isVerified(found, values.strict) ? EXIT.ok : EXIT.failed;
}

try {
  process.exitCode = await main();
} catch (err) {
  // Nothing but its arguments and files can be wrong here.
  process.stderr.write(`insitu-verify: ${(err as Error).message}\n`);
  process.exitCode = EXIT.usage;
}
