/**
 * Who vouches for the nodes of a cluster to each other. An authority of its own: agents have certificates of the other
 * one. While one takes the place of another, nodes trust both.
 */
import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Clock } from "../../shared/system.ts";
import { type CertificatePair, loadOrCreatePki, type Pki } from "../access/pki.ts";
import type { Routes } from "./saved-setup.ts";

/** Longer than those of the gateway, which makes new ones by itself: these are copied to hosts by hand. */
const VALIDITY_MS = 2 * 365 * 86_400_000;

export interface RouteAuthority {
  /** Of all that nodes are to trust. */
  trustedPem: string;
  issue(names: { dns: string[]; ips: string[] }): Promise<CertificatePair>;
}

/** Makes those that are missing. */
export async function openRoutes(
  about: { trustDomain: string; clock: Clock },
  secrets: string,
  { authorities, signs }: Routes,
): Promise<RouteAuthority> {
  const opened: string[] = [];
  let signer: Pki | undefined;
  for (const number of authorities) {
    const pki = await openOne(about, secrets, number);
    opened.push(pki.caPem);
    if (number === signs) signer = pki;
  }
  return {
    trustedPem: opened.join("\n"),
    issue: (names) => signer!.issuePeerCertificate(names),
  };
}

/** Its key is gone with it. */
export async function discardRoutes(secrets: string, number: number): Promise<void> {
  await rm(directoryOf(secrets, number), { recursive: true, force: true });
}

async function openOne(
  { trustDomain, clock }: { trustDomain: string; clock: Clock },
  secrets: string,
  number: number,
): Promise<Pki> {
  return await loadOrCreatePki({
    clock,
    serverValidityMs: VALIDITY_MS,
    directory: directoryOf(secrets, number),
    trustDomain: number === 1 ? `routes.${trustDomain}` : `routes-${number}.${trustDomain}`,
  });
}

function directoryOf(secrets: string, number: number): string {
  return join(secrets, number === 1 ? "nats-routes" : `nats-routes-${number}`);
}
