/**
 * Reads one field of a secret from the engine kv, version 2, of HashiCorp Vault or OpenBao:
 * `GET /v1/<mount>/data/<path>` with the token in `X-Vault-Token`.
 */
import { readFile } from "node:fs/promises";
import { request as requestHttp } from "node:http";
import { request as requestHttps } from "node:https";
import { z } from "zod";
import type { Clock } from "../../shared/system.ts";
import { readPrivateFile } from "./private-file.ts";
import type { VaultConfig, VaultSource } from "./secret-config.ts";
import { SecretError } from "./secret-error.ts";

const ANSWER_MAX_BYTES = 1024 * 1024;
const Answer = z.object({ data: z.object({ data: z.record(z.string(), z.unknown()) }) });

export interface VaultWorld {
  clock: Clock;
  vault: VaultConfig;
  signal: AbortSignal;
}

/** @throws SecretError */
export async function readFromVault(source: VaultSource, world: VaultWorld): Promise<Buffer> {
  const token = (await readPrivateFile(world.vault.tokenFile)).toString("latin1").trim();
  if (!/^[\x21-\x7e]+$/.test(token))
    throw new SecretError("missing", `the vault's token file ${world.vault.tokenFile} holds no token`);
  const { status, body } = await ask(source, token, world);
  const where = `${source.mount}/${source.path}`;
  if (status !== 200) throw refusal(status, where);
  const field = fieldOf(body, source.field);
  if (field !== undefined) return Buffer.from(field);
  throw new SecretError("missing", `the vault has no field ${source.field} that is text in ${where}`);
}

/** What the body says of an error is not shown: it is another program's text. */
function refusal(status: number, where: string): SecretError {
  if (status === 404)
    return new SecretError("missing", `the vault has no ${where}, or it was deleted there (404)`);
  if (status === 403)
    return new SecretError(
      "missing",
      `the vault denies ${where} (403): its token has ended, or has no policy for it`,
    );
  // 412: a replica that is behind; 472 and 473: a standby; 429: a standby or a quota; 503: sealed.
  if (status >= 500 || [408, 412, 429, 472, 473].includes(status))
    return new SecretError("unavailable", `the vault cannot serve ${where} now (${status})`);
  const redirect =
    status >= 300 && status < 400 ? "; redirects are not followed: name the address of the active one" : "";
  return new SecretError("missing", `the vault answers ${where} with ${status}${redirect}`);
}

function fieldOf(body: string, field: string): string | undefined {
  let data: Record<string, unknown>;
  try {
    data = Answer.parse(JSON.parse(body)).data.data;
  } catch {
    // Without its text: a parser's message quotes what it read.
    throw new SecretError("unavailable", "the vault's answer is not that of the engine kv, version 2");
  }
  const value = Object.hasOwn(data, field) ? data[field] : undefined;
  return typeof value === "string" || typeof value === "number" ? String(value) : undefined;
}

async function ask(
  { mount, path }: VaultSource,
  token: string,
  { clock, vault, signal }: VaultWorld,
): Promise<{ status: number; body: string }> {
  const ca = vault.caFile === undefined ? undefined : await readCa(vault.caFile);
  const url = new URL(`${vault.address.replace(/\/+$/, "")}/v1/${mount}/data/${path}`);
  const headers = {
    "x-vault-token": token,
    "x-vault-request": "true",
    accept: "application/json",
    ...(vault.namespace === undefined ? {} : { "x-vault-namespace": vault.namespace }),
  };
  return await new Promise((resolve, reject) => {
    const away = (why: string): SecretError =>
      new SecretError("unavailable", `the vault at ${url.host} ${why}`);
    const open = url.protocol === "https:" ? requestHttps : requestHttp;
    // A connection for each: a token's rights and the vault's certificate are looked at anew.
    const request = open(url, {
      headers,
      agent: false,
      minVersion: "TLSv1.2" as const,
      signal,
      ...(ca === undefined ? {} : { ca }),
    });
    const timer = clock.after(vault.timeoutMs, () =>
      request.destroy(away(`does not answer within ${vault.timeoutMs} ms`)),
    );
    request.once("close", () => timer.cancel());
    request.on("error", (thrown: NodeJS.ErrnoException) => {
      if (thrown instanceof SecretError) return reject(thrown);
      reject(away(`cannot be asked (${thrown.code ?? thrown.name})`));
    });
    request.once("response", (response) => {
      const parts: Buffer[] = [];
      let bytes = 0;
      response.on("data", (data: Buffer) => {
        parts.push(data);
        bytes += data.length;
        if (bytes > ANSWER_MAX_BYTES)
          request.destroy(away(`answers with more than ${ANSWER_MAX_BYTES} bytes`));
      });
      response.once("error", (thrown) =>
        reject(thrown instanceof SecretError ? thrown : away("broke off its answer")),
      );
      response.once("end", () => {
        resolve({ status: response.statusCode ?? 0, body: Buffer.concat(parts).toString("utf8") });
      });
    });
    request.end();
  });
}

async function readCa(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (thrown) {
    const { code } = thrown as NodeJS.ErrnoException;
    throw new SecretError("missing", `the vault's CA file ${path} cannot be read (${code})`);
  }
}
