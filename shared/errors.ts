/**
 * One error class, a closed set of codes, one table from code to HTTP and gRPC status.
 *
 * Callers branch on `code`, the retry policy on `retryable`, people read the message.
 */

/** [HTTP status, gRPC status, exit code of the CLI, title for people] */
const TABLE = {
  "document.invalid": [422, 3, 2, "The document is not valid"],
  "request.invalid": [400, 3, 2, "The request is not valid"],
  "request.too-large": [413, 8, 2, "The request is too large"],
  "request.unsupported-encoding": [415, 3, 2, "The encoding is not supported"],
  "request.unsupported-media-type": [415, 3, 2, "The kind of content is not supported"],
  "request.method-not-allowed": [405, 12, 2, "The method is not allowed here"],
  "request.host-refused": [421, 3, 2, "The server does not answer under that name"],
  "auth.missing": [401, 16, 6, "Sign in first"],
  "auth.denied": [403, 7, 6, "Not allowed"],
  "token.invalid": [403, 7, 6, "The join token is not valid"],
  "approval.needed": [202, 9, 9, "A second person has to approve it first"],
  "approval.waiting": [409, 9, 8, "A person has to approve it first"],
  "agent.name-taken": [409, 6, 7, "Another agent has this name"],
  "not-found": [404, 5, 4, "Not found"],
  conflict: [409, 10, 7, "Somebody else changed it first"],
  "idempotency.reused": [422, 9, 7, "The idempotency key was used for another request"],
  "placement.denied": [422, 9, 5, "No environment may run the step"],
  "step.not-resolvable": [409, 9, 7, "The step cannot be resolved so"],
  "run.terminal": [409, 9, 7, "The run has ended"],
  "backup.damaged": [422, 15, 1, "The backup is damaged"],
  "lease.stale": [409, 10, 7, "The lease has been superseded"],
  "limit.exceeded": [429, 8, 1, "A limit was reached"],
  "shard.elsewhere": [503, 14, 8, "Another replica decides for the run"],
  "report.unsigned": [403, 7, 1, "The report is not signed"],
  "report.forged": [403, 7, 1, "The report is not what its agent signed"],
  "log.unsigned": [403, 7, 1, "The log is not signed"],
  "log.forged": [403, 7, 1, "The log is not what its agent signed"],
  "ledger.forked": [500, 15, 1, "The ledger was changed"],
  "evidence.refused": [422, 15, 1, "The evidence does not verify"],
  "offer.refused": [409, 9, 1, "The offer was refused"],
  "protocol.incompatible": [400, 9, 1, "The two sides speak different protocol versions"],
  "store.unavailable": [503, 14, 8, "The store cannot be reached"],
  unreachable: [503, 14, 8, "The server cannot be reached"],
  timeout: [504, 4, 124, "It took too long"],
  cancelled: [499, 1, 130, "Cancelled"],
  unavailable: [503, 14, 8, "Not available now"],
  internal: [500, 13, 1, "An internal error"],
} as const satisfies Record<string, readonly [number, number, number, string]>;

export type ErrorCode = keyof typeof TABLE;

export const ERROR_CODES = Object.keys(TABLE) as ErrorCode[];

export interface ErrorOptions {
  /** True when the same call may succeed later, unchanged. */
  retryable?: boolean;
  cause?: unknown;
  details?: Record<string, unknown>;
}

export class InsituError extends Error {
  readonly code: ErrorCode;
  readonly retryable: boolean;
  readonly details: Readonly<Record<string, unknown>>;

  constructor(code: ErrorCode, message: string, options: ErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = "InsituError";
    this.code = code;
    this.retryable = options.retryable ?? false;
    this.details = options.details ?? {};
  }

  get httpStatus(): number {
    return TABLE[this.code][0];
  }
  get grpcStatus(): number {
    return TABLE[this.code][1];
  }
  get exitCode(): number {
    return TABLE[this.code][2];
  }
  get title(): string {
    return TABLE[this.code][3];
  }

  /** Wraps whatever was thrown, once, at an edge; the cause is kept. */
  static from(thrown: unknown): InsituError {
    if (thrown instanceof InsituError) return thrown;
    const message = thrown instanceof Error ? thrown.message : String(thrown);
    return new InsituError("internal", message, { cause: thrown });
  }
}

/** A state that must never be: the run it concerns is set aside for a person. */
export class InvariantError extends Error {
  override readonly name = "InvariantError";
}

export function invariant(condition: unknown, message: string): asserts condition {
  if (!condition) throw new InvariantError(message);
}

export function assertNever(value: never): never {
  throw new InvariantError(`unexpected ${JSON.stringify(value)}`);
}
