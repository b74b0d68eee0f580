/** What `insitu nats init` was told, kept with the keys, so that configurations can be written anew. */
import { join } from "node:path";
import { z } from "zod";
import { InsituError } from "../../shared/errors.ts";
import { loadSecret, replaceSecret } from "../access/secret-file.ts";

const FILE = "nats-setup.json";

/** Authorities of certificates between nodes, by number, the oldest first; and whose certificates nodes are given. */
const Routes = z
  .strictObject({ authorities: z.array(z.int().min(1)).min(1).max(2), signs: z.int().min(1) })
  .refine(({ authorities, signs }) => authorities.includes(signs), "no authority signs");
export type Routes = z.infer<typeof Routes>;

export const FIRST_ROUTES: Routes = { authorities: [1], signs: 1 };

const Port = z.int().min(0).max(65_535);
const SavedSetup = z.strictObject({
  v: z.literal(1),
  hosts: z.array(z.string().min(1)).min(1),
  ports: z.strictObject({ client: Port, route: Port, monitor: Port }),
  installDir: z.string(),
  dataDir: z.string(),
  sync: z.enum(["always", "interval"]),
  certificate: z.strictObject({ certificate: z.string(), key: z.string() }).optional(),
  trustDomain: z.string(),
  routes: Routes.default(FIRST_ROUTES),
});
export type SavedSetup = Omit<z.infer<typeof SavedSetup>, "v">;

export async function saveSetup(secrets: string, setup: SavedSetup): Promise<void> {
  const text = `${JSON.stringify({ v: 1, ...setup }, null, 2)}\n`;
  await replaceSecret(join(secrets, FILE), text);
}

/** @throws not-found when there is none; internal when it is damaged */
export async function loadSetup(secrets: string): Promise<SavedSetup> {
  const setup = await findSetup(secrets);
  if (setup === undefined)
    throw new InsituError(
      "not-found",
      `${join(secrets, FILE)} is not there: insitu nats init --secrets ${secrets} with the hosts and ports that you have writes it, and the same keys`,
    );
  return setup;
}

/** Undefined when there is none. @throws internal when it is damaged */
export async function findSetup(secrets: string): Promise<SavedSetup | undefined> {
  const file = join(secrets, FILE);
  const text = await loadSecret(file);
  if (text === undefined) return undefined;
  try {
    const { v: _, ...setup } = SavedSetup.parse(JSON.parse(text));
    return setup;
  } catch (err) {
    throw new InsituError(
      "internal",
      `${file} is damaged: take it from a backup, or delete it and run insitu nats init`,
      {
        cause: err,
      },
    );
  }
}
