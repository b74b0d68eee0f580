/** Every error of the API as RFC 9457 problem details. */
import type { Context } from "hono";
import { HTTPException } from "hono/http-exception";
import type { ContentfulStatusCode } from "hono/utils/http-status";
import type { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import type { Problem } from "./schemas.ts";

type Fault = NonNullable<Problem["errors"]>[number];

/** `type` is a stable name, not an address: nothing has to be reachable to understand an error. */
export function problemOf(error: InsituError, instance?: string): Problem {
  const errors = faultsOf(error.details.errors);
  const status = error.httpStatus;
  return {
    type: `urn:insitu:problem:${error.code}`,
    title: error.title,
    status,
    // What an unforeseen error says was not written for whoever calls: the log has it, under the instance.
    detail:
      error.code === "internal"
        ? "Something broke inside the server; its log has the details."
        : error.message,
    code: error.code,
    ...(instance === undefined ? {} : { instance }),
    ...(error.retryable ? { retryable: true } : {}),
    ...(errors.length === 0 ? {} : { errors }),
    ...(error.code === "approval.needed" ? { approval: error.details.approval as Problem["approval"] } : {}),
  };
}

export function problemResponse(c: Context, error: InsituError, instance?: string): Response {
  const headers: Record<string, string> = { "content-type": "application/problem+json" };
  if (error.code === "auth.missing") headers["www-authenticate"] = 'Bearer realm="insitu"';
  const { retryAfterMs } = error.details;
  if (typeof retryAfterMs === "number") headers["retry-after"] = String(Math.ceil(retryAfterMs / 1_000));
  else if (error.retryable && error.httpStatus !== 409) headers["retry-after"] = "1";
  return c.body(
    JSON.stringify(problemOf(error, instance)),
    error.httpStatus as ContentfulStatusCode,
    headers,
  );
}

/** What the framework throws carries a status and no code of ours. */
export function toInsituError(thrown: unknown): InsituError {
  if (thrown instanceof HTTPException && thrown.status < 500) {
    const code = thrown.status === 413 ? "request.too-large" : "request.invalid";
    return new InsituError(code, thrown.message || `the request was refused (${thrown.status})`, {
      cause: thrown,
    });
  }
  return InsituError.from(thrown);
}

/** The faults of a request that does not fit its schema, each with a JSON Pointer. */
export function validationError(where: string, error: z.core.$ZodError): InsituError {
  const errors = error.issues.flatMap((issue) => faultsOfIssue(where, issue));
  const first = errors[0];
  const message =
    `the ${where} of the request is not valid: ${first?.pointer ?? ""} ${first?.detail ?? ""}`.trim();
  return new InsituError("request.invalid", message, { cause: error, details: { errors } });
}

function faultsOfIssue(where: string, issue: z.core.$ZodIssue): Fault[] {
  const pointer = issue.path
    .map((key) => `/${String(key).replaceAll("~", "~0").replaceAll("/", "~1")}`)
    .join("");
  return [{ pointer: where === "json" ? `#${pointer}` : `${where}${pointer}`, detail: issue.message }];
}

/** `details.errors` comes from several places; what it may say is copied by name, and nothing else. */
function faultsOf(value: unknown): Fault[] {
  if (!Array.isArray(value)) return [];
  return value.flatMap((entry: unknown) => {
    if (typeof entry !== "object" || entry === null) return [];
    const from = entry as Record<string, unknown>;
    const detail = from.detail ?? from.message;
    const pointer = from.pointer ?? from.path;
    if (typeof detail !== "string") return [];
    return [
      {
        ...(typeof from.file === "string" ? { file: from.file } : {}),
        ...(typeof from.line === "number" ? { line: from.line } : {}),
        ...(typeof from.column === "number" ? { column: from.column } : {}),
        ...(typeof pointer === "string" ? { pointer } : {}),
        detail,
        ...(typeof from.hint === "string" ? { hint: from.hint } : {}),
      },
    ];
  });
}
