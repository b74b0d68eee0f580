/** The key that signs the ledger's checkpoints: Ed25519, in C2SP signed notes. */
import { createHash, createPrivateKey, createPublicKey, generateKeyPairSync, sign } from "node:crypto";
import { join } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import { formatCheckpoint } from "../../shared/provenance/checkpoint.ts";
import {
  formatNote,
  formatVerifierKey,
  NOTE_SIGNATURE,
  signNote,
} from "../../shared/provenance/signed-note.ts";
import type { LogKey } from "../evidence/ports.ts";
import { loadOrCreateSecret } from "./secret-file.ts";

/** The last 32 bytes of the SPKI of an Ed25519 key are the key (RFC 8410). */
const RAW_BYTES = 32;

/**
 * Keeps its key in `<directory>/ledger-key.pem`. The origin is `insitu.dev/<trust domain>/` and the first 8 bytes of the
 * public key's SHA-256: two installations never have the same.
 */
export async function loadOrCreateLogKey(directory: string, trustDomain: string): Promise<LogKey> {
  const path = join(directory, "ledger-key.pem");
  const pem = await loadOrCreateSecret(path, () =>
    generateKeyPairSync("ed25519").privateKey.export({ type: "pkcs8", format: "pem" }).toString(),
  );
  const key = readKey(path, pem);
  const publicKey = new Uint8Array(
    createPublicKey(key).export({ type: "spki", format: "der" }).subarray(-RAW_BYTES),
  );
  const id = createHash("sha256").update(publicKey).digest("hex").slice(0, 16);
  const origin = `insitu.dev/${trustDomain}/${id}`;
  const noteKey = { name: origin, type: NOTE_SIGNATURE.ed25519, publicKey };
  return {
    origin,
    verifierKey: formatVerifierKey(noteKey),
    sign({ size, root }) {
      const text = formatCheckpoint({ origin, size, root });
      return formatNote(text, [signNote(text, noteKey, (message) => sign(null, message, key))]);
    },
  };
}

function readKey(path: string, pem: string) {
  try {
    const key = createPrivateKey(pem);
    if (key.asymmetricKeyType === "ed25519") return key;
  } catch (err) {
    throw new InsituError("internal", `${path} is not a private key in PEM; restore it from a backup`, {
      cause: err,
    });
  }
  throw new InsituError(
    "internal",
    `${path} holds no ed25519 key, and checkpoints need one; restore it from a backup`,
  );
}
