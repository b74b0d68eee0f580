/** `insitu sign`, `insitu sign keygen` and `insitu verify`: all without a server. */
import { writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { InsituError } from "../../../shared/errors.ts";
import { digestOf } from "../../../shared/model/canonical.ts";
import { type LocatedResource, loadDocuments } from "../../../shared/model/load-documents.ts";
import type { AuthorKey } from "../../../shared/provenance/author-key.ts";
import { type Envelope, unseal } from "../../../shared/provenance/dsse.ts";
import {
  PIPELINE_ENVELOPES_MAX,
  PIPELINE_PAYLOAD,
  readStatement,
  STATEMENT_MAX_BYTES,
  saysTheSame,
  sealStatement,
  statementOf,
} from "../../../shared/provenance/signed-pipeline.ts";
import { type KeyType, makeKeyPair, readSigner, readVerifier, type Signer } from "../author-key-files.ts";
import { readDocumentSet } from "../documents.ts";
import { EXIT } from "../exit-codes.ts";
import { type Invocation, parseDuration } from "../invocation.ts";
import { withSignatures } from "../signed-yaml.ts";
import { instant, shortDigest } from "../text.ts";

type Pipeline = Extract<LocatedResource, { kind: "pipeline" }>;

interface SignOptions {
  file?: string;
  key?: string;
  expires?: string;
  out?: string;
}

export async function signDocuments(
  invocation: Invocation,
  _args: string[],
  { file, key, expires, out }: SignOptions,
): Promise<number> {
  if (file === undefined)
    throw invalid("name the file to sign: insitu sign -f pipeline.yaml --key author.pem");
  if (key === undefined)
    throw invalid("name the private key: --key author.pem; `insitu sign keygen author.pem` makes one");
  const { cwd } = invocation.world.settings;
  const signer = readSigner(resolve(cwd, key));
  const nowMs = invocation.clock.wallMs();
  const times = {
    signedAtMs: nowMs,
    expiresAtMs: expires === undefined ? undefined : nowMs + parseDuration(expires, "--expires"),
  };
  // The files that steps bring along are looked for beside the document.
  const set = await readSet(invocation, [file], { staleSignatures: "allowed" });
  const loaded = loadDocuments({
    files: set.documents,
    readAttachment: (path) => (Object.hasOwn(set.attachments, path) ? set.attachments[path] : undefined),
    staleSignatures: "allowed",
  });
  const pipelines = pipelinesOf(loaded.resources);
  const [document, second] = set.documents;
  if (document === undefined || second !== undefined) throw invalid("-f takes one file here, and no folder");
  if (pipelines.length === 0) throw invalid(`${file} holds no pipeline; only these are signed`);
  const signed = new Map(
    pipelines.map((pipeline) => [pipeline.spec.name, signedAnew(pipeline, signer, times)]),
  );
  const text = withSignatures(document.text, signed);
  const { output } = invocation;
  if (out === undefined) {
    await output.terminal.out.write(text);
    return EXIT.ok;
  }
  writeFileSync(resolve(cwd, out), text);
  for (const { spec } of pipelines) {
    const until = times.expiresAtMs === undefined ? "" : `, until ${instant(times.expiresAtMs)}`;
    await output.note(
      `pipeline/${spec.name} (${shortDigest(digestOf(spec))}) signed by ${signer.keyid}${until}`,
    );
  }
  return EXIT.ok;
}

/** Those of others that are still of this version stay; one by the same key is replaced. */
function signedAnew(
  pipeline: Pipeline,
  signer: Signer,
  times: { signedAtMs: number; expiresAtMs: number | undefined },
): Envelope[] {
  const { spec } = pipeline;
  const fresh = statementOf(spec, times);
  const kept = envelopesOf(pipeline).filter((envelope) => {
    const statement = readStatement(envelope);
    const own = envelope.signatures.some(({ keyid }) => keyid === signer.keyid);
    return !own && statement !== undefined && saysTheSame(statement, fresh);
  });
  if (kept.length >= PIPELINE_ENVELOPES_MAX)
    throw invalid(`pipeline ${spec.name} has ${kept.length} signatures by others, as many as there may be`);
  const envelope = sealStatement(fresh, signer);
  if (readStatement(envelope) === undefined)
    throw invalid(
      `pipeline ${spec.name} cannot be signed: its parameters take more than the ${STATEMENT_MAX_BYTES} bytes of a statement; shorten their lists of values`,
    );
  return [...kept, envelope];
}

export async function keygen(
  invocation: Invocation,
  [file]: string[],
  { type }: { type: KeyType },
): Promise<number> {
  const { cwd } = invocation.world.settings;
  const privateFile = resolve(cwd, file ?? "");
  const publicFile = `${privateFile.replace(/\.pem$/, "")}.pub.pem`;
  const keyid = makeKeyPair(type, { privateFile, publicFile });
  const { output } = invocation;
  if (!output.people) await output.data({ keyid, privateKey: privateFile, publicKey: publicFile });
  else {
    await output.line(`private key  ${privateFile}  for who signs; keep it from the server and from agents`);
    await output.line(
      `public key   ${publicFile}  for the policies of sites: docs/security/signed-pipelines.md`,
    );
    await output.line(`key id       ${keyid}`);
  }
  return EXIT.ok;
}

interface Check {
  pipeline: string;
  version: string;
  keyid: string;
  signedAtMs: number | null;
  expiresAtMs: number | null;
  /** By the keys that were given. */
  verdict: "valid" | "invalid" | "expired" | "unknown key";
}

export async function verifyDocuments(
  invocation: Invocation,
  _args: string[],
  { file = [], key = [] }: { file?: string[]; key?: string[] },
): Promise<number> {
  if (key.length === 0)
    throw invalid("name the public keys that you trust: insitu verify -f pipeline.yaml --key author.pub.pem");
  const { cwd } = invocation.world.settings;
  const keys = key.map((path) => readVerifier(resolve(cwd, path)));
  const set = await readSet(invocation, file);
  const loaded = loadDocuments({ files: set.documents, readAttachment: (path) => set.attachments[path] });
  const pipelines = pipelinesOf(loaded.resources);
  if (pipelines.length === 0) throw invalid("there is no pipeline in these documents");
  const nowMs = invocation.clock.wallMs();
  const checked = pipelines.map((pipeline) => ({ pipeline, checks: checksOf(pipeline, keys, nowMs) }));
  const { output } = invocation;
  if (!output.people) await output.data({ checks: checked.flatMap(({ checks }) => checks) });
  for (const { pipeline, checks } of output.people ? checked : []) {
    const name = `pipeline/${pipeline.spec.name} (${shortDigest(digestOf(pipeline.spec))})`;
    if (checks.length === 0) await output.line(`${name} ${output.paint("red", "is not signed")}`);
    for (const check of checks) {
      const verdict = output.paint(check.verdict === "valid" ? "green" : "red", check.verdict);
      await output.line(`${name} ${verdict}: ${timesOf(check)} by ${check.keyid}`);
    }
  }
  const all = checked.every(({ checks }) => checks.some(({ verdict }) => verdict === "valid"));
  return all ? EXIT.ok : EXIT.failed;
}

function checksOf(pipeline: Pipeline, keys: readonly AuthorKey[], nowMs: number): Check[] {
  return envelopesOf(pipeline).flatMap((envelope) => {
    const statement = readStatement(envelope);
    return envelope.signatures.map((signature): Check => {
      const { keyid = "" } = signature;
      const key = keys.find(({ id }) => id === keyid);
      const one = { ...envelope, signatures: [signature] };
      const holds =
        key !== undefined &&
        unseal(one, PIPELINE_PAYLOAD, (message, sig) => key.verify(message, sig)) !== undefined;
      const expired = statement?.expiresAtMs !== undefined && nowMs >= statement.expiresAtMs;
      const known = !holds ? "invalid" : expired ? "expired" : "valid";
      return {
        pipeline: pipeline.spec.name,
        version: digestOf(pipeline.spec),
        keyid,
        signedAtMs: statement?.signedAtMs ?? null,
        expiresAtMs: statement?.expiresAtMs ?? null,
        verdict: key === undefined ? "unknown key" : known,
      };
    });
  });
}

function timesOf({ signedAtMs, expiresAtMs }: Check): string {
  const signed = signedAtMs === null ? "signed" : `signed ${instant(signedAtMs)}`;
  return expiresAtMs === null ? signed : `${signed}, until ${instant(expiresAtMs)},`;
}

function envelopesOf({ document }: Pipeline): readonly Envelope[] {
  return document.kind === "pipeline" ? (document.signatures ?? []) : [];
}

function pipelinesOf(resources: readonly LocatedResource[]): Pipeline[] {
  return resources.filter((resource) => resource.kind === "pipeline");
}

function readSet(
  { world }: Invocation,
  paths: readonly string[],
  more: { staleSignatures?: "allowed" } = {},
) {
  const { cwd } = world.settings;
  return readDocumentSet(paths, { cwd, readStdin: () => world.terminal.readStdin(), ...more });
}

function invalid(message: string): InsituError {
  return new InsituError("request.invalid", message);
}
