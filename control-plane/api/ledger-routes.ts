/** The ledger for auditors: checkpoints and tiles as C2SP tlog-tiles lays them out, and proofs. */
import { createRoute, type OpenAPIHono, z } from "@hono/zod-openapi";
import type { ApiEnv, RouteDeps } from "./context.ts";
import { needs } from "./guard.ts";
import { LedgerKeyView, LedgerProofView } from "./ledger-schemas.ts";
import { flag, json, problems } from "./routes.ts";
import { reach } from "./run-routes.ts";
import { bodyOf } from "./streams.ts";

// Typed as any text: the library takes a literal with "json" in it for one JSON value.
const NDJSON: string = "application/x-ndjson";

const TILE_PREFIX = "/v1/ledger/tile/";
/** A full tile never changes. It is for who has the right alone, so no cache in between keeps it. */
const FOR_EVER = "private, max-age=31536000, immutable";

const key = createRoute({
  ...needs("audit:read"),
  method: "get",
  path: "/v1/ledger/key",
  operationId: "getLedgerKey",
  tags: ["ledger"],
  summary: "The key of the checkpoints, and the roots of the certificates of agents",
  description: "Compare them with what you have from elsewhere: a server that lies gives others.",
  responses: { 200: json(LedgerKeyView, "Key and roots"), ...problems },
});

const checkpoint = createRoute({
  ...needs("audit:read"),
  method: "get",
  path: "/v1/ledger/checkpoint",
  operationId: "getLedgerCheckpoint",
  tags: ["ledger"],
  summary: "The newest checkpoint: how many leaves, and the root of their tree",
  request: {
    query: z.object({
      upToDate: flag.openapi({ description: "Wait for one of all leaves that there are now" }),
    }),
  },
  responses: {
    200: { content: { "text/plain": { schema: z.string() } }, description: "A C2SP signed note" },
    ...problems,
  },
});

const tile = createRoute({
  ...needs("audit:read"),
  method: "get",
  path: "/v1/ledger/tile/{path}",
  operationId: "getLedgerTile",
  tags: ["ledger"],
  summary: "A tile of the tree, or a bundle of leaves",
  description:
    "`path` is as C2SP tlog-tiles has it, with its slashes: `<level>/<index>`, `<level>/<index>.p/<width>`, `entries/<index>`, `entries/<index>.p/<width>`. An index is in groups of three digits: `x001/234`.",
  request: { params: z.object({ path: z.string() }) },
  responses: {
    200: {
      content: { "application/octet-stream": { schema: z.string().openapi({ format: "binary" }) } },
      description: "Hashes one after the other; or leaves, each behind its length in two bytes",
    },
    ...problems,
  },
});

const prove = createRoute({
  ...needs("audit:read"),
  method: "get",
  path: "/v1/ledger/proofs/{runId}/{step}",
  operationId: "getLedgerProof",
  tags: ["ledger"],
  summary: "All leaves about the attempts of a step, receipts among them, each with its proof",
  request: { params: z.object({ runId: z.string().max(128), step: z.string().max(128) }) },
  responses: {
    200: json(LedgerProofView, "Leaves, proofs and the checkpoint that they lead to"),
    ...problems,
  },
});

const reconcile = createRoute({
  ...needs("audit:read"),
  method: "get",
  path: "/v1/ledger/reconciliation",
  operationId: "reconcileLedger",
  tags: ["ledger"],
  summary: "Compares the ledger with what it is made of; reads all of both",
  description:
    "Lines of JSON as they are found: `{ finding }` (ReconcileFinding), and at the end one `{ summary }` (ReconcileSummary); without that line the answer is not whole.",
  responses: {
    200: { content: { [NDJSON]: { schema: z.string() } }, description: "The findings" },
    ...problems,
  },
});

/** @yields lines of JSON; the first one is empty, so that the answer begins at once */
async function* lines(found: ReturnType<RouteDeps["ledger"]["reconcile"]>): AsyncGenerator<string, void> {
  yield "\n";
  for (let next = await found.next(); ; next = await found.next()) {
    if (next.done === true) return yield `${JSON.stringify({ summary: next.value })}\n`;
    yield `${JSON.stringify({ finding: next.value })}\n`;
  }
}

export function ledgerRoutes(app: OpenAPIHono<ApiEnv>, deps: RouteDeps): void {
  const { ledger } = deps;
  app.openapi(key, async (c) => c.json(await ledger.key(), 200));

  app.openapi(checkpoint, async (c) => {
    const note = await ledger.checkpoint(c.req.valid("query").upToDate === "true", c.req.raw.signal);
    return c.text(note, 200);
  });

  app.openapi(prove, async (c) => {
    const { runId, step } = c.req.valid("param");
    return c.json(await ledger.prove(runId, step, c.req.raw.signal), 200);
  });

  app.openapi(reconcile, (c) => {
    const body = bodyOf((signal) => lines(ledger.reconcile(signal)), reach(c, deps));
    return new Response(body, { headers: { "content-type": NDJSON, "cache-control": "no-store" } });
  });

  // A parameter of a described route ends at a slash.
  app.openAPIRegistry.registerPath(tile);
  for (const guard of tile.middleware) app.use(`${TILE_PREFIX}*`, guard);
  app.get(`${TILE_PREFIX}*`, async (c) => {
    const { bytes, full } = await ledger.tile(`tile/${c.req.path.slice(TILE_PREFIX.length)}`);
    const headers = {
      "content-type": "application/octet-stream",
      ...(full && { "cache-control": FOR_EVER }),
    };
    return c.body(Uint8Array.from(bytes), 200, headers);
  });
}
