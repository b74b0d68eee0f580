/** What every route sees besides the request. */
import type { Logger } from "pino";
import type { Clock } from "../../shared/system.ts";
import type { Judge } from "../access/access-decision.ts";
import type { ApprovalRecord } from "../access/approvals.ts";
import type { Principal } from "../access/rights.ts";
import type { RepeatSeed } from "../runs/ports.ts";
import type { Access } from "./access.ts";
import type { ConsoleAssets } from "./console.ts";
import type { IdempotencyStore } from "./idempotency.ts";
import type { ApiServices, Approvals } from "./services.ts";
import type { SignIn } from "./sign-in.ts";

export interface ApiOptions {
  access: Access;
  judge: Judge;
  log: Logger;
  clock: Clock;
  idempotency: IdempotencyStore;
  /**
   * Names in the Host header that are answered, without the port; null for any. On loopback it must be a list:
   * a page of another site can point its own name at 127.0.0.1 and would be let in by the browser.
   */
  allowedHosts: readonly string[] | null;
  /** Aborts when the server stops: streams end, so that the connections can close. */
  stopping: AbortSignal;
  console?: ConsoleAssets;
  /** Sessions and the ways to get one; without it there are tokens alone. */
  signIn?: SignIn;
  /** Comment lines keep an idle event stream open through proxies. */
  heartbeatMs?: number;
}

/** The names under which a server on loopback is reached. */
export const LOOPBACK_HOSTS: readonly string[] = ["localhost", "127.0.0.1", "[::1]"];

export interface ApiEnv {
  /** The response on its connection, and `address:port` of its other end; missing when the app is called without one. */
  Bindings: { outgoing?: { destroy(): unknown }; peer?: string };
  Variables: {
    /** Who calls, after authentication. */
    caller: string;
    principal: Principal;
    judge: Judge;
    approvals: Approvals;
    /** A second person's, that this request has taken. */
    approval?: ApprovalRecord;
    requestId: string;
    /** The body as JSON text; "" for none. */
    bodyText: string;
    /** Of a request with an Idempotency-Key. */
    repeatSeed?: RepeatSeed;
  };
}

export type RouteDeps = ApiServices &
  Pick<ApiOptions, "clock" | "stopping" | "idempotency" | "log"> & { heartbeatMs: number };
