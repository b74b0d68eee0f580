/** `insitu nats requirements` and `import`: accounts below an operator that somebody else runs. */
import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { parseDocument } from "yaml";
import { InsituError } from "../../../shared/errors.ts";
import * as claims from "../../access/nats-claims.ts";
import { ImportedBook, storeImported } from "../../access/nats-imported.ts";
import { EXIT } from "../exit-codes.ts";
import type { Invocation } from "../invocation.ts";

/** Of each account: the part `nats` of its JWT. What its owner adds to it, like limits, is theirs to say. */
export async function requirements(invocation: Invocation, [file = ""]: string[]): Promise<number> {
  const { streams, environments } = await read(invocation, file);
  const { account: controlPlane } = streams;
  const all = {
    streams: { account: controlPlane, ...claims.controlPlaneClaims([]) },
    environments: Object.fromEntries(
      Object.entries(environments).map(([environment, { account }]) => [
        environment,
        {
          account,
          ...claims.environmentClaims({
            environment,
            account,
            controlPlane,
            signingKeys: [],
            revocations: {},
          }),
        },
      ]),
    ),
  };
  await invocation.output.data(all);
  return EXIT.ok;
}

export async function importAccounts(
  invocation: Invocation,
  [file = ""]: string[],
  options: { secrets: string },
): Promise<number> {
  const { output, world } = invocation;
  const book = await read(invocation, file);
  const kept = await storeImported(resolve(world.settings.cwd, options.secrets), book);
  const environments = Object.keys(book.environments);
  if (!output.people) {
    await output.data({ file: kept, environments });
    return EXIT.ok;
  }
  await output.line(`${kept}: ${environments.join(", ")}`);
  await output.note(
    "Give it to each replica, and restart them with --nats-url and no user in it. Then delete what you brought: it holds the signing keys.",
  );
  return EXIT.ok;
}

/** @throws request.invalid without the keys that are in it */
async function read({ world }: Invocation, file: string): Promise<ImportedBook> {
  const path = resolve(world.settings.cwd, file);
  const text = await (file === "-" ? world.terminal.readStdin() : readFile(path, "utf8")).catch((err) => {
    const reason = (err as NodeJS.ErrnoException).code ?? String(err);
    throw new InsituError("request.invalid", `${path} cannot be read (${reason})`, { cause: err });
  });
  const document = parseDocument(text, { prettyErrors: true });
  // What the parser says of it may repeat a line, and lines hold keys.
  const [broken] = document.errors;
  if (broken)
    throw new InsituError("request.invalid", `${file}: line ${broken.linePos?.[0].line ?? "?"} is not YAML`);
  const parsed = ImportedBook.safeParse(document.toJS());
  if (parsed.success) return parsed.data;
  const issues = parsed.error.issues.map(
    ({ path: at, message }) => `${at.join(".") || "accounts"}: ${message}`,
  );
  throw new InsituError("request.invalid", `${file}: ${issues.join("; ")}`);
}
