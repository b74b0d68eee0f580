/** The two cookies: the session, and the sign-in that is under way. */
import type { Context } from "hono";
import { deleteCookie, getCookie, setCookie } from "hono/cookie";
import type { PendingSignIn } from "../access/identity-provider.ts";
import type { ApiEnv } from "./context.ts";

const PENDING_S = 600;
const PART = /^[\w-]{20,200}$/;

/**
 * `__Host-` makes the browser insist on TLS, on this very host and on the whole of it: no other host, and nobody on the
 * network, can plant one. Plain HTTP, on loopback alone, cannot have it.
 */
export class Cookies {
  readonly #secure: () => boolean;

  /** @param secure whether the console is opened over TLS */
  constructor(secure: () => boolean) {
    this.#secure = secure;
  }

  session(c: Context<ApiEnv>): string | undefined {
    return getCookie(c, this.#name("insitu"));
  }

  /** Ends with the browser, or when the server says so. */
  keepSession(c: Context<ApiEnv>, secret: string): void {
    setCookie(c, this.#name("insitu"), secret, this.#attributes());
  }

  dropSession(c: Context<ApiEnv>): void {
    deleteCookie(c, this.#name("insitu"), this.#attributes());
  }

  /** What was kept, once. */
  takePending(c: Context<ApiEnv>): PendingSignIn | null {
    const name = this.#name("insitu-sign-in");
    const parts = (getCookie(c, name) ?? "").split(".");
    deleteCookie(c, name, this.#attributes());
    const [state, nonce, verifier] = parts;
    if (parts.length !== 3 || !parts.every((part) => PART.test(part))) return null;
    return { state: state!, nonce: nonce!, verifier: verifier! };
  }

  keepPending(c: Context<ApiEnv>, { state, nonce, verifier }: PendingSignIn): void {
    const value = [state, nonce, verifier].join(".");
    setCookie(c, this.#name("insitu-sign-in"), value, { ...this.#attributes(), maxAge: PENDING_S });
  }

  #name(bare: string): string {
    return this.#secure() ? `__Host-${bare}` : bare;
  }

  /** Lax: the way back from the identity provider is a navigation from another site. */
  #attributes() {
    return { httpOnly: true, secure: this.#secure(), sameSite: "Lax", path: "/" } as const;
  }
}
