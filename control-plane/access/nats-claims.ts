/**
 * Who may do what on NATS, in operator mode: one account holds JetStream, and each environment has an account of its
 * own, which imports two subjects and no more: to pull from its queue and to acknowledge what it pulled.
 *
 * In one account, permissions do not isolate: JetStream delivers to the reply subject of a pull request without
 * asking whether the requester may publish there. Between accounts there is nothing to inject into.
 */
import { STREAMS } from "../../shared/wire/subjects.ts";
import type { NatsClaims } from "./nats-jwt.ts";

type Claims = Pick<NatsClaims, "name" | "nats">;

/** Left out, NATS reads them as none at all. */
const UNLIMITED = {
  subs: -1,
  data: -1,
  payload: -1,
  imports: -1,
  exports: -1,
  wildcards: true,
  conn: -1,
  leaf: -1,
};
const JETSTREAM_UNLIMITED = { mem_storage: -1, disk_storage: -1, streams: -1, consumer: -1 };
/** Connections of all agents of an environment, with those that are being replaced. */
const ENVIRONMENT_CONNECTIONS = 10_000;
const AGENT_SUBSCRIPTIONS = 20;
/** A pull request or an acknowledgement has some hundred bytes. */
const AGENT_PAYLOAD_BYTES = 64 * 1024;

/**
 * Of no use to us, and dangerous: until nats-server 2.10.27 and 2.11.1 anybody could purge the JetStream of any
 * account with them (CVE-2025-30215). NATS ignores this default for users that have permissions of their own.
 */
const ADMINISTRATION = ["$JS.API.ACCOUNT.>", "$JS.API.SERVER.>", "$JS.API.META.>"];
const DEFAULT_PERMISSIONS = { pub: { deny: ADMINISTRATION }, sub: {} };

export const nextOf = (account: string): string => `$JS.API.CONSUMER.MSG.NEXT.${STREAMS.work}.${account}`;
const ackOf = (account: string): string => `$JS.ACK.${STREAMS.work}.${account}.>`;

/** @param strict servers take what signing keys have signed, and nothing of the keys that name operator and accounts */
export function operatorClaims(
  systemAccount: string,
  signingKeys: readonly string[],
  strict: boolean,
): Claims {
  return {
    name: "insitu",
    nats: {
      type: "operator",
      system_account: systemAccount,
      signing_keys: signingKeys,
      ...(strict ? { strict_signing_key_usage: true } : {}),
    },
  };
}

export function systemAccountClaims(signingKeys: readonly string[]): Claims {
  return {
    name: "system",
    nats: {
      type: "account",
      limits: UNLIMITED,
      default_permissions: DEFAULT_PERMISSIONS,
      ...signedBy(signingKeys),
    },
  };
}

/** Holds the streams. Exports the work queue by a token: the position where the account of who asks has to stand. */
export function controlPlaneClaims(signingKeys: readonly string[]): Claims {
  const next = nextOf("*");
  const ack = ackOf("*");
  return {
    name: "control-plane",
    nats: {
      type: "account",
      limits: { ...UNLIMITED, ...JETSTREAM_UNLIMITED },
      default_permissions: DEFAULT_PERMISSIONS,
      ...signedBy(signingKeys),
      exports: [
        {
          name: "pull",
          subject: next,
          type: "service",
          response_type: "Stream",
          account_token_position: position(next),
        },
        { name: "acknowledge", subject: ack, type: "service", account_token_position: position(ack) },
      ],
    },
  };
}

/** @param revocations of user keys: those issued up to then, in seconds since the Unix epoch, are void */
export function environmentClaims(options: {
  environment: string;
  account: string;
  controlPlane: string;
  signingKeys: readonly string[];
  revocations: Readonly<Record<string, number>>;
}): Claims {
  const { environment, account, controlPlane, signingKeys, revocations } = options;
  const subjects = { pull: nextOf(account), acknowledge: ackOf(account) };
  return {
    name: `environment-${environment}`,
    nats: {
      type: "account",
      limits: { ...UNLIMITED, conn: ENVIRONMENT_CONNECTIONS, leaf: 0, exports: 0 },
      default_permissions: DEFAULT_PERMISSIONS,
      signing_keys: signingKeys,
      revocations,
      imports: Object.entries(subjects).map(([name, subject]) => ({
        name,
        subject,
        local_subject: subject,
        account: controlPlane,
        type: "service",
      })),
    },
  };
}

export function controlPlaneUserClaims(): Claims {
  return {
    name: "control-plane",
    nats: { type: "user", subs: -1, data: -1, payload: -1, pub: { deny: ADMINISTRATION }, sub: {} },
  };
}

/** Of the system account: tells the servers of accounts, and nothing else. */
export function claimsUserClaims(): Claims {
  return {
    name: "accounts",
    nats: {
      type: "user",
      subs: -1,
      data: -1,
      payload: -1,
      pub: { allow: ["$SYS.REQ.CLAIMS.UPDATE"] },
      sub: { allow: ["_INBOX.>"] },
    },
  };
}

/** Of the system account: reads what servers say of themselves and of connections. */
export function inspectorUserClaims(): Claims {
  return {
    name: "inspector",
    nats: {
      type: "user",
      subs: -1,
      data: -1,
      payload: -1,
      pub: { allow: ["$SYS.REQ.SERVER.PING.VARZ", "$SYS.REQ.SERVER.PING.CONNZ"] },
      sub: { allow: ["_INBOX.>"] },
    },
  };
}

export function agentUserClaims(options: { agent: string; name: string; account: string }): Claims {
  const { agent, name, account } = options;
  return {
    name: agent,
    nats: {
      type: "user",
      issuer_account: account,
      subs: AGENT_SUBSCRIPTIONS,
      data: -1,
      payload: AGENT_PAYLOAD_BYTES,
      pub: { allow: [nextOf(account), ackOf(account)] },
      sub: { allow: [`${agentInbox(name)}.>`] },
    },
  };
}

/** Left out where there are none: what was signed before there were any stays the same text. */
function signedBy(signingKeys: readonly string[]): { signing_keys?: readonly string[] } {
  return signingKeys.length === 0 ? {} : { signing_keys: signingKeys };
}

/** Where an agent is answered. Names hold no dots. */
export function agentInbox(name: string): string {
  return `_INBOX.${name}`;
}

/** Counted from one, of the first `*`. */
function position(subject: string): number {
  return subject.split(".").indexOf("*") + 1;
}
