/**
 * One OpenID provider, as a client of it: people prove to it who they are, and it tells us.
 *
 * It may be away when the server starts: its description is read when it is first wanted, and again until that works.
 * ID tokens are taken from its token endpoint alone, and their signature is checked nevertheless.
 */
import * as client from "openid-client";
import { InsituError } from "../../shared/errors.ts";
import type { Clock } from "../../shared/system.ts";
import { type Person, personOf } from "./people.ts";
import { plainFetch } from "./plain-fetch.ts";

export interface IdentityProviderOptions {
  /** As it names itself. */
  issuer: string;
  clientId: string;
  /** null for a client that has none, and rests on PKCE alone. */
  clientSecret: string | null;
  /** With `openid` among them. */
  scopes: readonly string[];
  groupsClaim: string;
  /** PEM; undefined for the authorities of the system. */
  ca: string | undefined;
  clock: Clock;
  log: { info(facts: object, text: string): void; warn(facts: object, text: string): void };
}

/** What the browser keeps from the start of its sign-in to the end. */
export interface PendingSignIn {
  state: string;
  nonce: string;
  /** Of PKCE, RFC 7636. */
  verifier: string;
}

export interface DeviceSignIn {
  /** For the program that waits. */
  deviceCode: string;
  /** For the person, who types it in. */
  userCode: string;
  verificationUri: string;
  /** With the code in it. */
  verificationUriComplete: string | null;
  expiresInMs: number;
  intervalMs: number;
}

export type DeviceAnswer = { kind: "person"; person: Person } | { kind: "waiting" } | { kind: "too-fast" };

export interface IdentityProvider {
  readonly issuer: string;
  /** Reads its description, unless that is known. @throws `unavailable` */
  discover(): Promise<void>;
  /** Where to send the browser. @throws `unavailable` */
  begin(redirectUri: string): Promise<PendingSignIn & { url: string }>;
  /** @param callback the whole address to which it sent the browser back. @throws `auth.missing`, `unavailable` */
  finish(callback: URL, pending: PendingSignIn): Promise<Person>;
  /** RFC 8628. @throws `unavailable`, and `request.invalid` when it offers no such thing */
  beginDevice(): Promise<DeviceSignIn>;
  /** Asks once. @throws `auth.missing`, `unavailable` */
  askDevice(deviceCode: string): Promise<DeviceAnswer>;
}

/** No `none`, and none with a shared secret: the key of the client signs nobody's identity. */
const ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA", "Ed25519"];
const DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code";
/** By so much its clock may differ from ours. */
const SKEW_S = 30;
/** A description is read again after this: addresses move. */
const KNOWN_FOR_MS = 3_600_000;
/** So often at most it is asked while it does not answer. */
const RETRY_MS = 3_000;
const ERROR_MAX_CHARS = 100;

type Tokens = client.TokenEndpointResponse & client.TokenEndpointResponseHelpers;

export function openIdProvider(options: IdentityProviderOptions): IdentityProvider {
  return new OpenIdProvider(options);
}

class OpenIdProvider implements IdentityProvider {
  readonly #options: IdentityProviderOptions;
  #known: { config: client.Configuration; untilMs: number } | null = null;
  #asking: Promise<client.Configuration> | null = null;
  #failed: { error: InsituError; untilMs: number } | null = null;

  constructor(options: IdentityProviderOptions) {
    this.#options = options;
  }

  get issuer(): string {
    return this.#options.issuer;
  }

  async discover(): Promise<void> {
    await this.#config();
  }

  async begin(redirectUri: string): Promise<PendingSignIn & { url: string }> {
    const config = await this.#config();
    const pending = {
      state: client.randomState(),
      nonce: client.randomNonce(),
      verifier: client.randomPKCECodeVerifier(),
    };
    const url = client.buildAuthorizationUrl(config, {
      redirect_uri: redirectUri,
      scope: this.#options.scopes.join(" "),
      state: pending.state,
      nonce: pending.nonce,
      code_challenge: await client.calculatePKCECodeChallenge(pending.verifier),
      code_challenge_method: "S256",
    });
    return { ...pending, url: url.href };
  }

  async finish(callback: URL, { state, nonce, verifier }: PendingSignIn): Promise<Person> {
    const config = await this.#config();
    try {
      const tokens = await client.authorizationCodeGrant(config, callback, {
        expectedState: state,
        expectedNonce: nonce,
        pkceCodeVerifier: verifier,
        idTokenExpected: true,
      });
      return await this.#person(config, tokens);
    } catch (err) {
      throw this.#refusal(err);
    }
  }

  async beginDevice(): Promise<DeviceSignIn> {
    const config = await this.#config();
    if (config.serverMetadata().device_authorization_endpoint === undefined) {
      const message = `${this.issuer} offers no sign-in for the command line (RFC 8628); use a token in INSITU_TOKEN`;
      throw new InsituError("request.invalid", message);
    }
    try {
      const given = await client.initiateDeviceAuthorization(config, {
        scope: this.#options.scopes.join(" "),
      });
      return {
        deviceCode: given.device_code,
        userCode: given.user_code,
        verificationUri: checkedUri(given.verification_uri),
        verificationUriComplete: given.verification_uri_complete
          ? checkedUri(given.verification_uri_complete)
          : null,
        expiresInMs: given.expires_in * 1_000,
        intervalMs: (given.interval ?? 5) * 1_000,
      };
    } catch (err) {
      throw this.#refusal(err);
    }
  }

  async askDevice(deviceCode: string): Promise<DeviceAnswer> {
    const config = await this.#config();
    try {
      const tokens = await client.genericGrantRequest(config, DEVICE_GRANT, { device_code: deviceCode });
      return { kind: "person", person: await this.#person(config, tokens) };
    } catch (err) {
      if (err instanceof client.ResponseBodyError && err.error === "authorization_pending")
        return { kind: "waiting" };
      if (err instanceof client.ResponseBodyError && err.error === "slow_down") return { kind: "too-fast" };
      throw this.#refusal(err);
    }
  }

  /** Many providers put groups and addresses behind the userinfo endpoint alone. */
  async #person(config: client.Configuration, tokens: Tokens): Promise<Person> {
    const { issuer, groupsClaim } = this.#options;
    const claims = tokens.claims();
    if (claims === undefined) throw new InsituError("auth.missing", "the identity provider sent no ID token");
    const complete = Object.hasOwn(claims, groupsClaim) && Object.hasOwn(claims, "email");
    const more =
      complete || config.serverMetadata().userinfo_endpoint === undefined
        ? {}
        : await client.fetchUserInfo(config, tokens.access_token, claims.sub);
    return personOf({ ...claims, ...more }, { issuer, groupsClaim });
  }

  async #config(): Promise<client.Configuration> {
    const nowMs = this.#options.clock.monotonicMs();
    if (this.#known !== null && nowMs < this.#known.untilMs) return this.#known.config;
    if (this.#failed !== null && nowMs < this.#failed.untilMs) {
      if (this.#known !== null) return this.#known.config;
      throw this.#failed.error;
    }
    this.#asking ??= this.#discover().finally(() => {
      this.#asking = null;
    });
    return await this.#asking;
  }

  async #discover(): Promise<client.Configuration> {
    const { clock, log, issuer } = this.#options;
    try {
      const config = await this.#read();
      const isNew = this.#known === null;
      this.#known = { config, untilMs: clock.monotonicMs() + KNOWN_FOR_MS };
      this.#failed = null;
      if (isNew) log.info({ issuer }, "identity provider found");
      return config;
    } catch (err) {
      const error = this.#away(err);
      this.#failed = { error, untilMs: clock.monotonicMs() + RETRY_MS };
      log.warn({ issuer, err }, "identity provider not found");
      if (this.#known !== null) return this.#known.config;
      throw error;
    }
  }

  async #read(): Promise<client.Configuration> {
    const { issuer, clientId, clientSecret, ca } = this.#options;
    const url = new URL(issuer);
    const fetch = plainFetch(ca);
    const plain = url.protocol === "http:" ? [client.allowInsecureRequests] : [];
    const found = await client.discovery(url, clientId, undefined, client.None(), {
      execute: plain,
      [client.customFetch]: fetch,
    });
    const described = found.serverMetadata();
    const signing = (described.id_token_signing_alg_values_supported ?? ["RS256"]).filter((name) =>
      ALGORITHMS.includes(name),
    );
    if (signing.length === 0) {
      const message = `${issuer} signs ID tokens with none of ${ALGORITHMS.join(", ")}`;
      throw new InsituError("unavailable", message);
    }
    const basic = described.token_endpoint_auth_methods_supported?.includes("client_secret_basic") ?? true;
    const proof =
      clientSecret === null
        ? client.None()
        : basic
          ? client.ClientSecretBasic(clientSecret)
          : client.ClientSecretPost(clientSecret);
    const { supportsPKCE: _, ...metadata } = described;
    const config = new client.Configuration(
      { ...metadata, id_token_signing_alg_values_supported: signing },
      clientId,
      { [client.clockTolerance]: SKEW_S },
      proof,
    );
    config[client.customFetch] = fetch;
    if (url.protocol === "http:") client.allowInsecureRequests(config);
    client.enableNonRepudiationChecks(config);
    return config;
  }

  #away(err: unknown): InsituError {
    const message = `the identity provider ${this.issuer} cannot be reached or is not one: ${reasonOf(err)}`;
    return new InsituError("unavailable", message, { retryable: true, cause: err });
  }

  /** The person is told little; who runs the server finds the cause in its log. */
  #refusal(err: unknown): InsituError {
    if (err instanceof InsituError) return err;
    const own = causesOf(err).find((cause) => cause instanceof InsituError);
    if (own !== undefined) return this.#away(own);
    return new InsituError(
      "auth.missing",
      "the identity provider did not confirm who you are; sign in again",
      {
        cause: err,
        details: { why: reasonOf(err) },
      },
    );
  }
}

/** Shown for a person to open: nothing but a web address. */
function checkedUri(text: string): string {
  const { protocol, href } = new URL(text);
  if (protocol !== "https:" && protocol !== "http:")
    throw new Error(`${protocol} is not the address of a page`);
  return href;
}

function causesOf(err: unknown): unknown[] {
  const causes: unknown[] = [];
  for (let next = err; next !== undefined && causes.length < 8; ) {
    causes.push(next);
    next = next instanceof Error ? next.cause : undefined;
  }
  return causes;
}

/** For the log. Codes and messages of the library, and the provider's own code; no token is in them. */
function reasonOf(err: unknown): string {
  const reasons = causesOf(err).flatMap((cause) => {
    if (!(cause instanceof Error)) return [];
    const own =
      cause instanceof client.ResponseBodyError || cause instanceof client.AuthorizationResponseError;
    // RFC 6749, section 5.2: such as invalid_client for a wrong secret.
    return own ? [cause.message, `it said ${cause.error.slice(0, ERROR_MAX_CHARS)}`] : [cause.message];
  });
  return reasons.join(": ");
}
