/** What the HTTP API says of resources that are stored. */
import { z } from "@hono/zod-openapi";
import {
  AccessPolicySpec,
  DatasetSpec,
  EnvironmentSpec,
  KINDS,
  PipelineSpec,
  PoolSpec,
} from "../../shared/model/spec.ts";
import { Envelope } from "../../shared/provenance/dsse.ts";
import { AtMs } from "./schemas.ts";

export const StoredResourceView = z
  .object({
    kind: z.enum(KINDS),
    name: z.string(),
    version: z
      .string()
      .nullable()
      .openapi({ description: "Digest of a pipeline or an access policy; null for other kinds" }),
    spec: z.union([PipelineSpec, DatasetSpec, EnvironmentSpec, PoolSpec, AccessPolicySpec]),
    signatures: z.array(Envelope).optional().openapi({
      description:
        "Of a pipeline, as DSSE envelopes. Whoever trusts no server checks them: this one does not",
    }),
    revision: z.int(),
    appliedAtMs: AtMs,
    appliedBy: z.string(),
  })
  .openapi("Resource");

export const PipelineVersionEntry = z
  .object({ version: z.string(), appliedAtMs: AtMs, appliedBy: z.string() })
  .openapi("PipelineVersionEntry");

export const ResourceDetail = StoredResourceView.extend({
  versions: z.array(PipelineVersionEntry).optional().openapi({ description: "Of pipelines, newest first" }),
}).openapi("ResourceDetail");

export const PipelineVersionView = z
  .object({ version: z.string(), spec: PipelineSpec })
  .openapi("PipelineVersion");
