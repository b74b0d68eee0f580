/**
 * HTTP towards the API. Over node:http and node:https rather than fetch: a private CA can be given to one
 * connection, the answer is decoded by nobody but us (Brotli never), and a command starts sooner.
 */
import http from "node:http";
import https from "node:https";
import type { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import { createGunzip } from "node:zlib";
import { ERROR_CODES, type ErrorCode, InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import type { Problem } from "../api/schemas.ts";
import { startHelp, type Target } from "./context.ts";

export interface Call {
  method: "GET" | "POST" | "DELETE";
  path: string;
  query?: Record<string, string | number | boolean | undefined>;
  body?: unknown;
  headers?: Record<string, string>;
  signal: AbortSignal;
  /** Between the request and the head of the answer. */
  timeoutMs?: number;
}

export interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  body: Readable;
}

const ANSWER_TIMEOUT_MS = 30_000;
/** A GET, or a write with an idempotency key, is sent again when the connection broke under it. */
const RETRIES_MAX = 3;
const RETRY_FIRST_MS = 150;
/** What another replica may do better. */
const TURN_ON: ReadonlySet<ErrorCode> = new Set([
  "unreachable",
  "unavailable",
  "timeout",
  "store.unavailable",
]);
const ERROR_BODY_MAX_BYTES = 4 * 1024 * 1024;

export class HttpTransport {
  readonly #given: Target;
  /** Which of the target's servers is asked. */
  #at = 0;
  readonly #agent: http.Agent;
  readonly #clock: Clock;

  constructor(target: Target, clock: Clock) {
    this.#given = target;
    this.#clock = clock;
    this.#agent = target.server.startsWith("https:")
      ? new https.Agent({ keepAlive: true, minVersion: "TLSv1.2", ...(target.ca ? { ca: target.ca } : {}) })
      : new http.Agent({ keepAlive: true });
  }

  /** The server that is asked now. */
  get target(): Target {
    return { ...this.#given, server: this.#given.servers[this.#at]! };
  }

  close(): void {
    this.#agent.destroy();
  }

  /** Whether another replica may do better; it is asked from now on. */
  #turn(error: InsituError): void {
    if (this.#mayTurn(error)) this.#at = (this.#at + 1) % this.#given.servers.length;
  }

  #mayTurn(error: InsituError): boolean {
    return TURN_ON.has(error.code) && this.#given.servers.length > 1;
  }

  /**
   * JSON in, JSON out.
   *
   * @throws InsituError with the code of the problem that the server answered, or `unreachable`
   */
  async json<T>(call: Call): Promise<T> {
    const answer = await this.withRetries(call);
    const body = await text(answer.body);
    try {
      return JSON.parse(body) as T;
    } catch (err) {
      const message = `${this.target.server} answered something that is not JSON; is it an insitu server?`;
      throw new InsituError("protocol.incompatible", message, { cause: err });
    }
  }

  async withRetries(call: Call): Promise<Answer> {
    const repeatable = call.method === "GET" || call.headers?.["idempotency-key"] !== undefined;
    for (let attempt = 0; ; attempt++) {
      try {
        return await this.open(call);
      } catch (thrown) {
        const error = InsituError.from(thrown);
        // A connection that was refused has carried nothing: also what is not repeatable may go elsewhere.
        const again = this.#mayTurn(error) && (repeatable || error.details.refused === true);
        if (!(again || (repeatable && error.retryable)) || attempt >= RETRIES_MAX) throw error;
        await this.#clock.sleep(RETRY_FIRST_MS * 2 ** attempt, call.signal);
      }
    }
  }

  /** Resolves with the head of a 2xx answer; its body streams. */
  async open(call: Call): Promise<Answer> {
    try {
      const answer = await this.#send(call);
      // 202: nothing has happened yet, a second person has to approve it.
      if (answer.status >= 200 && answer.status < 300 && answer.status !== 202) return answer;
      throw await problemError(answer, this.target);
    } catch (thrown) {
      const error = InsituError.from(thrown);
      if (!call.signal.aborted) this.#turn(error);
      throw thrown;
    }
  }

  #send(call: Call): Promise<Answer> {
    call.signal.throwIfAborted();
    const url = new URL(this.target.server + call.path);
    for (const [key, value] of Object.entries(call.query ?? {})) {
      if (value !== undefined) url.searchParams.set(key, String(value));
    }
    const payload = call.body === undefined ? undefined : Buffer.from(JSON.stringify(call.body));
    const headers: Record<string, string | number> = {
      accept: "application/json",
      "accept-encoding": "gzip",
      ...(this.target.token === null ? {} : { authorization: `Bearer ${this.target.token}` }),
      ...(payload ? { "content-type": "application/json", "content-length": payload.length } : {}),
      ...call.headers,
    };
    const { promise, resolve, reject } = deferred<Answer>();
    const send = url.protocol === "https:" ? https.request : http.request;
    const request = send(
      url,
      { method: call.method, headers, agent: this.#agent, signal: call.signal },
      (message) => {
        late.cancel();
        try {
          resolve({
            status: message.statusCode ?? 0,
            headers: message.headers,
            body: decoded(message, this.target),
          });
        } catch (err) {
          message.destroy();
          reject(err);
        }
      },
    );
    const timeoutMs = call.timeoutMs ?? ANSWER_TIMEOUT_MS;
    const late = this.#clock.after(timeoutMs, () => {
      const message = `${this.target.server} (from ${this.target.source}) did not answer within ${timeoutMs / 1000} s`;
      request.destroy(new InsituError("timeout", message));
    });
    request.on("error", (err) => {
      late.cancel();
      reject(call.signal.aborted ? call.signal.reason : transportError(err, this.target));
    });
    request.end(payload);
    return promise;
  }
}

function deferred<T>() {
  let resolve!: (value: T) => void;
  let reject!: (reason: unknown) => void;
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

function decoded(message: http.IncomingMessage, target: Target): Readable {
  const encoding = message.headers["content-encoding"] ?? "identity";
  if (encoding === "identity") return message;
  if (encoding === "gzip") {
    const gunzip = createGunzip();
    message.on("error", (err) => gunzip.destroy(err));
    message.on("aborted", () => gunzip.destroy(new Error("the connection was cut")));
    return message.pipe(gunzip);
  }
  throw new InsituError(
    "protocol.incompatible",
    `${target.server} answered in the encoding "${encoding}", which was not asked for; look at the proxy before it`,
  );
}

/** Node's codes for a connection that broke after it stood: the same call may go through the next time. */
const BROKEN = new Set(["ECONNRESET", "EPIPE", "ETIMEDOUT", "HPE_INVALID_EOF_STATE"]);
const UNTRUSTED = /CERT|SELF_SIGNED|UNABLE_TO_VERIFY/;

export function transportError(err: unknown, target: Target): InsituError {
  if (err instanceof InsituError) return err;
  const code = (err as NodeJS.ErrnoException).code ?? "";
  const where = `${target.server} (from ${target.source})`;
  const options = { cause: err, details: { server: target.server, source: target.source } };
  if (code === "ECONNREFUSED") {
    return new InsituError("unreachable", `nothing listens at ${where}. ${startHelp()}`, {
      ...options,
      details: { ...options.details, refused: true },
    });
  }
  if (code === "ENOTFOUND" || code === "EAI_AGAIN") {
    return new InsituError("unreachable", `the name of ${where} cannot be looked up (${code})`, options);
  }
  if (code === "ERR_TLS_CERT_ALTNAME_INVALID") {
    const reason = err instanceof Error ? err.message : code;
    const message = `the certificate of ${where} is for another name (${reason}). Use an address that it names, or start the server with --public-host`;
    return new InsituError("unreachable", message, options);
  }
  if (UNTRUSTED.test(code)) {
    const message = `the certificate of ${where} is not trusted (${code}). Give its CA with --ca-file, INSITU_CA_FILE, or "caFile" in context.json`;
    return new InsituError("unreachable", message, options);
  }
  const reason = code || (err instanceof Error ? err.message : String(err));
  const message = `the connection to ${where} failed (${reason})`;
  return new InsituError("unreachable", message, { ...options, retryable: BROKEN.has(code) });
}

/** RFC 9457 problem details as an error with our code; anything else as what the status says. */
async function problemError(answer: Answer, target: Target): Promise<InsituError> {
  let body = "";
  for await (const chunk of answer.body) {
    body += String(chunk);
    if (body.length > ERROR_BODY_MAX_BYTES) break;
  }
  const problem = parseProblem(body);
  if (problem === null) {
    const message = `${target.server} (from ${target.source}) answered ${answer.status}${hintOf(answer.status)}`;
    return new InsituError(codeOfStatus(answer.status), message, {
      retryable: answer.status === 502 || answer.status === 503,
    });
  }
  const known = ERROR_CODES.find((code) => code === problem.code);
  const message = withAdvice(problem, target);
  return new InsituError(known ?? codeOfStatus(answer.status), message, {
    retryable: problem.retryable === true,
    details: { ...(problem.errors ? { errors: problem.errors } : {}), status: answer.status },
  });
}

function withAdvice(problem: Problem, target: Target): string {
  if (problem.code !== "auth.missing") {
    return (problem.detail || problem.title).replace(
      /GET \/v1\/(\w+) lists them$/,
      "`insitu get $1` lists them",
    );
  }
  return target.token === null
    ? `${target.server} wants a token. Give it with INSITU_TOKEN or --token; the server wrote one into context.json in its data directory. \`insitu auth login\` signs in where there is an identity provider`
    : `${target.server} does not accept the token; \`insitu auth login\` signs in anew, and the server's context.json has a token that is valid`;
}

function parseProblem(body: string): Problem | null {
  try {
    const parsed: unknown = JSON.parse(body);
    if (typeof parsed !== "object" || parsed === null || !("code" in parsed)) return null;
    return parsed as Problem;
  } catch {
    return null; // a proxy's own page: the status has to do
  }
}

function codeOfStatus(status: number): ErrorCode {
  if (status === 401) return "auth.missing";
  if (status === 403) return "auth.denied";
  if (status === 404) return "not-found";
  if (status === 409) return "conflict";
  if (status === 413) return "request.too-large";
  if (status === 429) return "limit.exceeded";
  if (status >= 500) return "unavailable";
  return "request.invalid";
}

function hintOf(status: number): string {
  return status === 404 ? ": is this the address of an insitu server?" : "";
}
