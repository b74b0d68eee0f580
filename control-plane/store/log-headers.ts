/** What a chunk on the stream `LOGS` says of itself, beside its entries: whose they are, which ones, and who signed that. */
import { LogSignature } from "../../shared/wire/log-signature.ts";
import type { StoredChunk } from "../gateway/log-doubts.ts";
import type { LogChunk } from "../gateway/ports.ts";
import type { StreamMessage } from "./stream-reader.ts";

const EPOCH = "Insitu-Epoch";
const FIRST = "Insitu-First-Entry";
const COUNT = "Insitu-Entry-Count";
const ENCODING = "Insitu-Encoding";
const AGENT = "Insitu-Agent";
const KEY = "Insitu-Key";
const SIGNATURE = "Insitu-Signature";
/** Index in the batch that was signed, and its size: "3/14". */
const PLACE = "Insitu-Batch-Place";
const PATH = "Insitu-Batch-Path";

export function headersOf(chunk: LogChunk): Record<string, string> {
  const { epoch, firstEntry, entryCount, encoding, signed } = chunk;
  const said = {
    [EPOCH]: String(epoch),
    [FIRST]: String(firstEntry),
    [COUNT]: String(entryCount),
    [ENCODING]: encoding,
  };
  if (signed === undefined) return said;
  const { index, size, path } = signed.batch;
  return {
    ...said,
    [AGENT]: signed.agent,
    [KEY]: signed.keyId,
    [SIGNATURE]: signed.signature,
    [PLACE]: `${index}/${size}`,
    ...(path === "" ? {} : { [PATH]: path }),
  };
}

/** The chunk of a message; undefined where it does not say which entries it holds. */
export function chunkOf({ subject, header, data }: StreamMessage): StoredChunk | undefined {
  if (![EPOCH, FIRST, COUNT].every((name) => /^[1-9]\d{0,9}$/.test(header(name)))) return undefined;
  const [, runId, stepId, attempt] = subject.split(".");
  return {
    runId: runId!,
    stepId: stepId!,
    attempt: Number(attempt),
    epoch: Number(header(EPOCH)),
    firstEntry: Number(header(FIRST)),
    entryCount: Number(header(COUNT)),
    encoding: header(ENCODING) === "gzip" ? "gzip" : "identity",
    entries: data,
    signed: signatureIn(header),
  };
}

/** Undefined where nothing is said of one; null where what is said is none. */
function signatureIn(header: (name: string) => string): LogSignature | null | undefined {
  if ([AGENT, KEY, SIGNATURE, PLACE, PATH].every((name) => header(name) === "")) return undefined;
  const [index, size] = header(PLACE).split("/").map(Number);
  const read = LogSignature.safeParse({
    agent: header(AGENT),
    keyId: header(KEY),
    signature: header(SIGNATURE),
    batch: { index, size, path: header(PATH) },
  });
  return read.success ? read.data : null;
}
