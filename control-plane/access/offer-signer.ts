/** Signs offers, so that an agent takes none that somebody else put into NATS. */
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign } from "node:crypto";
import { join } from "node:path";
import { InsituError } from "../../shared/errors.ts";
import { OFFER_PURPOSE } from "../../shared/wire/attempt.ts";
import { loadOrCreateSecret } from "./secret-file.ts";

export interface OfferSigner {
  /** Base64 Ed25519 signature over the purpose, a zero byte and the payload. Default: `OFFER_PURPOSE`. */
  sign(payload: Uint8Array, purpose?: string): string;
  /** SPKI, as agents get it when they enrol and with each welcome. */
  readonly publicKeyPem: string;
}

/** Keeps its key in `<directory>/offer-key.pem`. */
export async function loadOrCreateOfferSigner(directory: string): Promise<OfferSigner> {
  const path = join(directory, "offer-key.pem");
  const pem = await loadOrCreateSecret(path, () =>
    generateKeyPairSync("ed25519").privateKey.export({ type: "pkcs8", format: "pem" }).toString(),
  );
  let key: KeyObject;
  try {
    key = createPrivateKey(pem);
  } catch (err) {
    throw new InsituError("internal", `${path} is not a private key in PEM; restore it from a backup`, {
      cause: err,
    });
  }
  if (key.asymmetricKeyType !== "ed25519") {
    throw new InsituError(
      "internal",
      `${path} holds a key of type ${key.asymmetricKeyType}, and offers need ed25519`,
    );
  }
  return {
    sign: (payload, purpose = OFFER_PURPOSE) =>
      sign(null, Buffer.concat([Buffer.from(`${purpose}\0`), payload]), key).toString("base64"),
    publicKeyPem: createPublicKey(key).export({ type: "spki", format: "pem" }).toString(),
  };
}
