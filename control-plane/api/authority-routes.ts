/** The issuers of certificates: which there are, and how one takes the other's place. */
import { createRoute, type OpenAPIHono } from "@hono/zod-openapi";
import type { ApiEnv, RouteDeps } from "./context.ts";
import { needs } from "./guard.ts";
import { json, jsonBody, problems } from "./routes.ts";
import {
  ActivateIssuerBody,
  AuthorityView,
  ImportIssuerBody,
  IssuerRequestView,
  RetireIssuerBody,
} from "./schemas.ts";

const tags = ["authority"];
const answer = { 200: json(AuthorityView, "The authority as it is now"), ...problems };

const show = createRoute({
  ...needs("fleet:view"),
  method: "get",
  path: "/v1/authority",
  operationId: "getAuthority",
  tags,
  summary: "Issuers of certificates, and which agents have come along",
  responses: answer,
});

const rotate = createRoute({
  ...needs("authority:manage"),
  method: "post",
  path: "/v1/authority/rotate",
  operationId: "rotateAuthority",
  tags,
  summary: "Add a root; agents come to trust it, and nothing else changes yet",
  description: "Needs no Idempotency-Key: while one waits to be activated, there is no other.",
  responses: answer,
});

const request = createRoute({
  ...needs("authority:manage"),
  method: "post",
  path: "/v1/authority/request",
  operationId: "requestIssuer",
  tags,
  summary: "A certificate request for an intermediate, to be signed with a root that is kept elsewhere",
  description: "Needs no Idempotency-Key: it is the same until the certificate has come.",
  responses: { 200: json(IssuerRequestView, "The request"), ...problems },
});

const importChain = createRoute({
  ...needs("authority:manage"),
  method: "post",
  path: "/v1/authority/import",
  operationId: "importIssuer",
  tags,
  summary: "Add the intermediate whose certificate was signed; agents come to trust its root",
  request: { body: jsonBody(ImportIssuerBody) },
  responses: answer,
});

const activate = createRoute({
  ...needs("authority:manage"),
  method: "post",
  path: "/v1/authority/activate",
  operationId: "activateIssuer",
  tags,
  summary: "Certificates of agents come from the added issuer from now on, and agents renew theirs",
  request: { body: jsonBody(ActivateIssuerBody) },
  responses: answer,
});

const retire = createRoute({
  ...needs("authority:manage"),
  method: "post",
  path: "/v1/authority/retire",
  operationId: "retireIssuer",
  tags,
  summary: "Nobody trusts an issuer any more, and its key is destroyed",
  description: "Needs no Idempotency-Key: doing it twice is doing it once.",
  request: { body: jsonBody(RetireIssuerBody) },
  responses: answer,
});

export function authorityRoutes(app: OpenAPIHono<ApiEnv>, { authority }: RouteDeps): void {
  app.openapi(show, (c) => c.json(authority.show(), 200));
  app.openapi(rotate, async (c) => c.json(await authority.rotate(c.get("caller")), 200));
  app.openapi(request, async (c) => c.json(await authority.request(), 200));
  app.openapi(importChain, async (c) =>
    c.json(await authority.import({ ...c.req.valid("json"), by: c.get("caller") }), 200),
  );
  app.openapi(activate, async (c) =>
    c.json(await authority.activate({ ...c.req.valid("json"), by: c.get("caller") }), 200),
  );
  app.openapi(retire, async (c) =>
    c.json(await authority.retire({ ...c.req.valid("json"), by: c.get("caller") }), 200),
  );
}
