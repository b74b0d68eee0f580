/** Reads a request's body once, within its limit: what follows sees plain JSON text whatever was sent. */
import { promisify } from "node:util";
import { gunzip } from "node:zlib";
import { InsituError } from "../../shared/errors.ts";

export const BODY_MAX_BYTES = 8 * 1024 * 1024;

const unzip = promisify(gunzip);
const utf8 = new TextDecoder("utf-8", { fatal: true });

/**
 * The text of a JSON body; "" when there is none.
 *
 * Brotli is refused unread: the decoder of Node 20 writes out of bounds (CVE-2026-111497).
 *
 * @throws InsituError `request.unsupported-encoding`, `request.unsupported-media-type`, `request.too-large`,
 *   `request.invalid`
 */
export async function readJsonText(request: Request, maxBytes = BODY_MAX_BYTES): Promise<string> {
  const encoding = (request.headers.get("content-encoding") ?? "identity").trim().toLowerCase();
  if (encoding !== "identity" && encoding !== "gzip") {
    throw new InsituError(
      "request.unsupported-encoding",
      `bodies may be sent as they are or as gzip, not as ${encoding}`,
    );
  }
  if (Number(request.headers.get("content-length") ?? 0) > maxBytes) throw tooLarge(maxBytes);
  const sent = await readAtMost(request.body, maxBytes);
  if (sent.length === 0) return "";
  const type = (request.headers.get("content-type") ?? "").split(";")[0]?.trim().toLowerCase();
  if (type !== "application/json") {
    throw new InsituError(
      "request.unsupported-media-type",
      `bodies are application/json, not ${type || "unnamed"}`,
    );
  }
  const bytes = encoding === "gzip" ? await unzipAtMost(sent, maxBytes) : sent;
  let text: string;
  try {
    text = utf8.decode(bytes);
    JSON.parse(text);
  } catch (err) {
    const why = err instanceof Error ? err.message : String(err);
    throw new InsituError("request.invalid", `the body is not JSON in UTF-8: ${why}`, { cause: err });
  }
  return text;
}

async function readAtMost(body: ReadableStream<Uint8Array> | null, maxBytes: number): Promise<Uint8Array> {
  if (body === null) return new Uint8Array();
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of body) {
    bytes += chunk.length;
    if (bytes > maxBytes) throw tooLarge(maxBytes);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

async function unzipAtMost(bytes: Uint8Array, maxBytes: number): Promise<Uint8Array> {
  try {
    return await unzip(bytes, { maxOutputLength: maxBytes });
  } catch (err) {
    if (err instanceof Error && "code" in err && err.code === "ERR_BUFFER_TOO_LARGE")
      throw tooLarge(maxBytes);
    throw new InsituError("request.invalid", "the body is not valid gzip", { cause: err });
  }
}

function tooLarge(maxBytes: number): InsituError {
  return new InsituError(
    "request.too-large",
    `the body is larger than ${maxBytes} bytes; apply fewer files at once`,
  );
}
