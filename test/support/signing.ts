/** Authors who sign pipelines, for tests. */
import { generateKeyPairSync, sign } from "node:crypto";
import type { PipelineSpec } from "../../shared/model/spec.ts";
import { authorKeyOf } from "../../shared/provenance/author-key.ts";
import type { Envelope } from "../../shared/provenance/dsse.ts";
import { sealStatement, statementOf } from "../../shared/provenance/signed-pipeline.ts";

export interface Author {
  id: string;
  publicPem: string;
  sign(message: Uint8Array): Uint8Array;
  seal(spec: PipelineSpec, times?: { signedAtMs: number; expiresAtMs?: number }): Envelope;
}

export function author(type: "ed25519" | "p256" = "ed25519"): Author {
  const { privateKey: key, publicKey } =
    type === "ed25519"
      ? generateKeyPairSync("ed25519")
      : generateKeyPairSync("ec", { namedCurve: "prime256v1" });
  const { id } = authorKeyOf(publicKey)!;
  const own = (message: Uint8Array): Uint8Array => sign(type === "ed25519" ? null : "sha256", message, key);
  return {
    id,
    publicPem: publicKey.export({ type: "spki", format: "pem" }).toString(),
    sign: own,
    seal: (spec, times = { signedAtMs: 0 }) =>
      sealStatement(statementOf(spec, times), { keyid: id, sign: own }),
  };
}
