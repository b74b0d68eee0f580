/** The key that signs the ledger's checkpoints: Ed25519, in C2SP signed notes. */
import { createHash, createPrivateKey, createPublicKey, hkdfSync, sign } from "node:crypto";
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
import { loadOrCreateSecret, loadSecret } from "./secret-file.ts";

/** The last 32 bytes of the SPKI of an Ed25519 key are the key (RFC 8410). */
const RAW_BYTES = 32;
/** RFC 8410: what stands before the 32 bytes of an Ed25519 private key. */
const ED25519_PKCS8 = Buffer.from("302e020100300506032b657004220420", "hex");

/**
 * Keeps its key in `<directory>/ledger-key.pem`. The origin is `insitu.dev/<trust domain>/` and the first 8 bytes of the
 * public key's SHA-256: two installations never have the same.
 */
export async function loadOrCreateLogKey(directory: string, trustDomain: string): Promise<LogKey> {
  const path = join(directory, "ledger-key.pem");
  const pem = await loadOrCreateSecret(path, async () =>
    firstKey(await loadSecret(join(directory, "offer-key.pem"))),
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

/**
 * Made from the key of the offers, which replicas with directories of their own have in common already: they would make
 * different ledger keys otherwise, when they are upgraded. Once it is made, the file counts.
 */
function firstKey(offerKeyPem: string | undefined): string {
  if (offerKeyPem === undefined)
    throw new InsituError("internal", "the key of the ledger is made after the key of the offers");
  const secret = createPrivateKey(offerKeyPem).export({ type: "pkcs8", format: "der" });
  const seed = Buffer.from(hkdfSync("sha256", secret, "", "insitu.ledger-key.v1", RAW_BYTES));
  const key = createPrivateKey({ key: Buffer.concat([ED25519_PKCS8, seed]), type: "pkcs8", format: "der" });
  return key.export({ type: "pkcs8", format: "pem" }).toString();
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
