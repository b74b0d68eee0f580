/**
 * `fetch` for answers of a few kilobytes, over node:https: a private certificate authority can be given to one client,
 * nothing compressed is asked for or accepted, and an answer has a limit in bytes and in time.
 */
import { request as httpRequest, type IncomingMessage } from "node:http";
import { request as httpsRequest } from "node:https";
import { InsituError } from "../../shared/errors.ts";

const BODY_MAX_BYTES = 1024 * 1024;
const TIMEOUT_MS = 10_000;
const NO_BODY = new Set([204, 205, 304]);

export interface PlainRequest {
  method: string;
  headers: Record<string, string>;
  body?: unknown;
  signal?: AbortSignal | undefined;
}

/** @param ca PEM, in place of the system's. */
export function plainFetch(ca: string | undefined) {
  return async (address: string, { method, headers, body, signal }: PlainRequest): Promise<Response> => {
    const url = new URL(address);
    try {
      return await send(url, { method, headers, body: textOf(body), ca, signal });
    } catch (err) {
      const why = err instanceof Error ? err.message : String(err);
      const message = `${url.origin} cannot be reached or does not answer as it should: ${why}`;
      throw new InsituError("unavailable", message, { retryable: true, cause: err });
    }
  };
}

interface Sent {
  method: string;
  headers: Record<string, string>;
  body: string | undefined;
  ca: string | undefined;
  signal: AbortSignal | undefined;
}

function send(url: URL, { method, headers, body, ca, signal }: Sent): Promise<Response> {
  return new Promise((resolve, reject) => {
    const limit = AbortSignal.timeout(TIMEOUT_MS);
    const options = {
      method,
      headers: { ...headers, "accept-encoding": "identity" },
      signal: signal === undefined ? limit : AbortSignal.any([signal, limit]),
      agent: false as const,
    };
    const onAnswer = (answer: IncomingMessage): void => void readAnswer(answer).then(resolve, reject);
    const request =
      url.protocol === "https:"
        ? httpsRequest(
            url,
            { ...options, ...(ca === undefined ? {} : { ca }), minVersion: "TLSv1.2" },
            onAnswer,
          )
        : httpRequest(url, options, onAnswer);
    request.on("error", reject);
    request.end(body);
  });
}

async function readAnswer(answer: IncomingMessage): Promise<Response> {
  const encoding = answer.headers["content-encoding"] ?? "identity";
  if (encoding !== "identity") {
    answer.destroy();
    throw new Error(`the answer is encoded as ${encoding}, which was not asked for`);
  }
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of answer) {
    bytes += (chunk as Buffer).length;
    if (bytes > BODY_MAX_BYTES) throw new Error(`the answer is larger than ${BODY_MAX_BYTES} bytes`);
    chunks.push(chunk as Buffer);
  }
  const headers = new Headers();
  for (const [name, value] of Object.entries(answer.headers)) {
    for (const one of Array.isArray(value) ? value : [value ?? ""]) headers.append(name, one);
  }
  const status = answer.statusCode ?? 0;
  return new Response(NO_BODY.has(status) ? null : Buffer.concat(chunks), { status, headers });
}

function textOf(body: unknown): string | undefined {
  if (body === undefined || body === null) return undefined;
  if (typeof body === "string") return body;
  if (body instanceof URLSearchParams) return body.toString();
  throw new InsituError("internal", "a body of this kind cannot be sent");
}
