/** `insitu ca …`. */
import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { InsituError } from "../../../shared/errors.ts";
import type { AuthorityView } from "../../api/schemas.ts";
import { EXIT } from "../exit-codes.ts";
import type { Invocation } from "../invocation.ts";
import { type Hue, instant, oneLine } from "../text.ts";

type Issuer = AuthorityView["issuers"][number];

const HUES: Record<Issuer["state"], Hue> = { next: "yellow", active: "green", former: "dim", retired: "dim" };

export async function show(
  invocation: Invocation,
  _args: string[],
  { pem }: { pem?: boolean },
): Promise<number> {
  const client = await invocation.client();
  const view = await client.authority(invocation.signal);
  if (pem === true) {
    for (const line of view.caPem.trimEnd().split("\n")) await invocation.output.line(line);
    return EXIT.ok;
  }
  return await print(invocation, view);
}

export async function rotate(invocation: Invocation): Promise<number> {
  const client = await invocation.client();
  const view = await client.changeAuthority("rotate", undefined, invocation.signal);
  return await print(invocation, view);
}

export async function request(invocation: Invocation): Promise<number> {
  const { output } = invocation;
  const client = await invocation.client();
  const made = await client.requestIssuer(invocation.signal);
  if (!output.people) {
    await output.data(made);
    return EXIT.ok;
  }
  for (const line of made.requestPem.trimEnd().split("\n")) await output.line(line);
  await output.note(
    "Have it signed as a CA with pathlen 0, and bring the certificate back with those above it, the root last: `insitu ca import FILE`.",
  );
  return EXIT.ok;
}

export async function importChain(invocation: Invocation, [file = ""]: string[]): Promise<number> {
  const { world } = invocation;
  const path = resolve(world.settings.cwd, file);
  const chainPem = await (file === "-" ? world.terminal.readStdin() : readFile(path, "utf8")).catch((err) => {
    const reason = (err as NodeJS.ErrnoException).code ?? String(err);
    throw new InsituError("request.invalid", `${path} cannot be read (${reason})`, { cause: err });
  });
  if (chainPem.includes("PRIVATE KEY"))
    throw new InsituError(
      "request.invalid",
      `${file} holds a private key, which belongs nowhere but where it was made: give the certificates alone`,
    );
  const client = await invocation.client();
  try {
    const view = await client.changeAuthority("import", { chainPem }, invocation.signal);
    return await print(invocation, view);
  } catch (err) {
    if (!(err instanceof InsituError) || err.code !== "request.invalid") throw err;
    throw new InsituError(err.code, `${file}: ${err.message}`, { cause: err });
  }
}

export async function activate(
  invocation: Invocation,
  _args: string[],
  { force }: { force?: boolean },
): Promise<number> {
  const client = await invocation.client();
  const body = { force: force === true };
  return await print(invocation, await client.changeAuthority("activate", body, invocation.signal));
}

export async function retire(
  invocation: Invocation,
  [id = ""]: string[],
  { force }: { force?: boolean },
): Promise<number> {
  const client = await invocation.client();
  const body = { id, force: force === true };
  return await print(invocation, await client.changeAuthority("retire", body, invocation.signal));
}

async function print({ output }: Invocation, view: AuthorityView): Promise<number> {
  if (!output.people) {
    await output.data(view);
    return EXIT.ok;
  }
  await output.table(view.issuers, [
    { title: "ISSUER", value: ({ id }) => id },
    { title: "STATE", value: stateOf, hue: ({ state }) => HUES[state] },
    { title: "TRUSTED BY", value: ({ trustedBy }) => `${trustedBy}/${view.agents}`, right: true },
    { title: "CERTIFICATES", value: ({ certificates }) => String(certificates), right: true },
    { title: "ENDS", value: ({ notAfterMs }) => (notAfterMs === null ? "-" : instant(notAfterMs)) },
    { title: "SUBJECT", value: ({ subject }) => oneLine(subject ?? "-") },
  ]);
  if (view.behindCount > 0) {
    const some = view.behind.map(oneLine).join(", ");
    const more = view.behindCount > view.behind.length ? ", …" : "";
    await output.note(`${view.behindCount} of ${view.agents} agents have not come along yet: ${some}${more}`);
  }
  await output.note(nextStep(view));
  return EXIT.ok;
}

function stateOf({ state, serving, intermediate }: Issuer): string {
  const words = [
    state,
    ...(serving ? ["servers' certificates"] : []),
    ...(intermediate ? ["intermediate"] : []),
  ];
  return words.join(", ");
}

/** See docs/runbooks/ca-rotation.md. */
function nextStep({ issuers, behindCount }: AuthorityView): string {
  const former = issuers.find(({ state }) => state === "former");
  if (issuers.some(({ state }) => state === "next"))
    return behindCount === 0
      ? "Every agent trusts the new root: go on with `insitu ca activate`."
      : "When every agent trusts the new root, go on with `insitu ca activate`.";
  if (former === undefined) return "`insitu ca rotate` begins with a new root.";
  return behindCount === 0
    ? `Every agent has a certificate of the active issuer: go on with \`insitu ca retire ${former.id}\`.`
    : `When every agent has a certificate of the active issuer, go on with \`insitu ca retire ${former.id}\`.`;
}
