/** Errors as the other end of a call sees them: a gRPC status, and our code in the trailers. */
import { Metadata, type StatusObject } from "@grpc/grpc-js";
import { InsituError } from "../../shared/errors.ts";
import { ERROR_CODE_METADATA } from "../../shared/wire/grpc.ts";

export type RpcStatus = Pick<StatusObject, "code" | "details" | "metadata">;

export function rpcStatus(thrown: unknown): RpcStatus {
  const err = InsituError.from(thrown);
  const metadata = new Metadata();
  metadata.set(ERROR_CODE_METADATA, err.code);
  // What broke inside is for our log; the caller could do nothing with it but learn about us.
  const details = err.code === "internal" ? "the server failed; its log says why" : err.message;
  return { code: err.grpcStatus, details, metadata };
}

/** Ends a streaming call with a status. The call's own error listener sends it. */
export function failCall(
  call: { emit(event: "error", status: RpcStatus & Error): boolean },
  thrown: unknown,
): void {
  call.emit("error", Object.assign(new Error("call failed"), rpcStatus(thrown)));
}
