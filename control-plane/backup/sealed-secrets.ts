/** The directory of secrets, sealed with a passphrase: scrypt (RFC 7914) and AES-256-GCM. */
import { createCipheriv, createDecipheriv, randomBytes, type ScryptOptions, scrypt } from "node:crypto";
import type { Dirent } from "node:fs";
import { chmod, mkdir, open, readdir, readFile } from "node:fs/promises";
import { dirname, join, relative, sep } from "node:path";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";

/** 64 MiB and a fifth of a second for each guess. */
const COST = { N: 2 ** 16, r: 8, p: 1 };
const CIPHER = "aes-256-gcm";
const KEY_BYTES = 32;
export const SEALED_MAX_BYTES = 8 * 1024 * 1024;
/** So that a passphrase of a few letters is not taken for protection of a certificate authority. */
const PASSPHRASE_MIN = 12;

const base64 = z.string().regex(/^[A-Za-z0-9+/]*={0,2}$/);
const Sealed = z.object({
  v: z.literal(1),
  kdf: z.literal("scrypt"),
  // Bounded: the file may come from anywhere, and scrypt takes what memory it is told to.
  N: z
    .int()
    .min(2)
    .max(2 ** 20),
  r: z.int().min(1).max(32),
  p: z.int().min(1).max(16),
  salt: base64,
  cipher: z.literal(CIPHER),
  nonce: base64,
  tag: base64,
  data: base64,
});

/** Text by path below the directory, with `/`. */
export type Secrets = Readonly<Record<string, string>>;
const Path = z.string().regex(/^(?!\.)[A-Za-z0-9._-]+(\/(?!\.)[A-Za-z0-9._-]+){0,4}$/);
const Secrets = z.record(Path, z.string());

/** @throws not-found when there are none: another directory was meant */
export async function readSecrets(directory: string): Promise<Secrets> {
  let entries: Dirent[];
  try {
    entries = await readdir(directory, { recursive: true, withFileTypes: true });
  } catch (err) {
    const reason = (err as NodeJS.ErrnoException).code;
    throw new InsituError(
      "not-found",
      `the secrets in ${directory} cannot be read (${reason}); name the directory with --data or --secrets, as for insitu server`,
      { cause: err },
    );
  }
  const secrets: Record<string, string> = {};
  for (const entry of entries) {
    const path = join(entry.parentPath, entry.name);
    const name = relative(directory, path).split(sep).join("/");
    // A file that is being written has a name of its own until it is complete.
    if (!entry.isFile() || name.endsWith(".new")) continue;
    secrets[name] = await readFile(path, "utf8");
  }
  // The first authority's key is gone when it was retired.
  const hasAuthority = Object.keys(secrets).some((name) => /^ca(-[0-9a-f]+)?\.key\.pem$/.test(name));
  if (!hasAuthority || secrets["offer-key.pem"] === undefined) {
    throw new InsituError(
      "not-found",
      `${directory} does not hold a server's secrets; name the directory with --data or --secrets, as for insitu server`,
    );
  }
  return secrets;
}

/**
 * Those that are not in the directory yet.
 *
 * @throws conflict when another secret lies in the place of one
 */
export async function missingSecrets(directory: string, secrets: Secrets): Promise<Secrets> {
  const missing: Record<string, string> = {};
  for (const [name, text] of Object.entries(secrets)) {
    const path = join(directory, name);
    const there = await readFile(path, "utf8").catch(() => undefined);
    if (there === undefined) missing[name] = text;
    // The certificate of the nats-server is made anew at each start.
    else if (there !== text && !name.startsWith("nats.")) {
      throw new InsituError(
        "conflict",
        `${path} is there and is not the one of the backup: name an empty directory with --secrets, or move this one away`,
      );
    }
  }
  return missing;
}

/** Readable by their owner alone, and on disk when it resolves. */
export async function writeSecrets(directory: string, secrets: Secrets): Promise<void> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  await chmod(directory, 0o700);
  for (const [name, text] of Object.entries(secrets)) {
    const path = join(directory, name);
    await mkdir(dirname(path), { recursive: true, mode: 0o700 });
    const file = await open(path, "wx", 0o600);
    try {
      await file.writeFile(text);
      await file.sync();
    } finally {
      await file.close();
    }
  }
}

/** @throws request.invalid for a passphrase that protects nothing */
export async function seal(secrets: Secrets, passphrase: string): Promise<Buffer> {
  if (passphrase.length < PASSPHRASE_MIN) {
    throw new InsituError(
      "request.invalid",
      `the passphrase is shorter than ${PASSPHRASE_MIN} characters: it guards the keys of the whole installation`,
    );
  }
  const [salt, nonce] = [randomBytes(16), randomBytes(12)];
  const cipher = createCipheriv(CIPHER, await keyOf(passphrase, salt, COST), nonce);
  const data = Buffer.concat([cipher.update(JSON.stringify(secrets), "utf8"), cipher.final()]);
  const sealed: z.infer<typeof Sealed> = {
    v: 1,
    kdf: "scrypt",
    ...COST,
    salt: salt.toString("base64"),
    cipher: CIPHER,
    nonce: nonce.toString("base64"),
    tag: cipher.getAuthTag().toString("base64"),
    data: data.toString("base64"),
  };
  return Buffer.from(`${JSON.stringify(sealed)}\n`);
}

/** @throws auth.denied for another passphrase; undefined is given for what was never sealed here */
export async function unseal(bytes: Uint8Array, passphrase: string): Promise<Secrets | undefined> {
  const sealed = parsed(Buffer.from(bytes).toString("utf8"));
  if (sealed === undefined) return undefined;
  const [salt, nonce, tag, data] = [sealed.salt, sealed.nonce, sealed.tag, sealed.data].map((text) =>
    Buffer.from(text, "base64"),
  ) as [Buffer, Buffer, Buffer, Buffer];
  let text: string;
  try {
    const decipher = createDecipheriv(CIPHER, await keyOf(passphrase, salt, sealed), nonce, {
      authTagLength: 16,
    });
    decipher.setAuthTag(tag);
    text = Buffer.concat([decipher.update(data), decipher.final()]).toString("utf8");
  } catch (err) {
    throw new InsituError("auth.denied", "the passphrase does not open the secrets of this backup", {
      cause: err,
    });
  }
  return Secrets.parse(JSON.parse(text));
}

function parsed(text: string): z.infer<typeof Sealed> | undefined {
  try {
    return Sealed.safeParse(JSON.parse(text)).data;
  } catch {
    return undefined; // not even JSON
  }
}

function keyOf(passphrase: string, salt: Buffer, { N, r, p }: typeof COST): Promise<Buffer> {
  // The same characters typed on another system are other bytes without this.
  const normal = passphrase.normalize("NFC");
  const options: ScryptOptions = { N, r, p, maxmem: 256 * N * r };
  return new Promise((resolve, reject) => {
    scrypt(normal, salt, KEY_BYTES, options, (err, key) => (err ? reject(err) : resolve(key)));
  });
}
