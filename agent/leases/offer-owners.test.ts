import { describe, expect, test } from "vitest";
import { OFFER_PURPOSE } from "../../shared/wire/attempt.ts";
import {
  type OfferOwners,
  OWNERS_PURPOSE,
  ownersHeader,
  signedOwners,
} from "../../shared/wire/offer-owners.ts";
import { leaseKey, offerOf, offerSigner } from "../agent.fixture.ts";
import { OfferReader } from "./offer-reader.ts";

const signer = offerSigner();
const reader = new OfferReader();
reader.setKey(signer.publicKeyPem);

const payload = Buffer.from(JSON.stringify(offerOf()));
const OWNERS: OfferOwners = { pipeline: "lab – ü", datasets: { rows: "registry" } };
const headerOf = (json: string, { over = payload, purpose = OWNERS_PURPOSE, by = signer } = {}): string =>
  ownersHeader(Buffer.from(json), by.sign(signedOwners(over, Buffer.from(json)), purpose));
const read = (owners?: string) => reader.read(payload, signer.sign(payload), owners);

test("who answers for what an offer names is read from its header", () => {
  expect(read(headerOf(JSON.stringify(OWNERS)))).toMatchObject({ kind: "offer", owners: OWNERS });
});

test("of an offer without the header nobody is said to answer for anything", () => {
  expect(read()).toMatchObject({ kind: "offer", owners: undefined });
});

test("what a later control plane says besides is overlooked", () => {
  const header = headerOf(JSON.stringify({ ...OWNERS, more: 1 }));
  expect(read(header)).toMatchObject({ kind: "offer", owners: OWNERS });
});

describe("an offer is refused whose header of owners", () => {
  const json = JSON.stringify(OWNERS);
  const [text, signature] = headerOf(json).split(".");
  const changed = Buffer.from(json.replace("lab", "hq")).toString("base64");
  const other = Buffer.from(JSON.stringify(offerOf({ lease: leaseKey({ epoch: 2 }) })));
  test.each<[string, string]>([
    ["was changed", `${changed}.${signature}`],
    ["is not signed", `${text}`],
    ["is signed by another", headerOf(json, { by: offerSigner() })],
    ["was made for another offer", headerOf(json, { over: other })],
    ["is signed as if it were an offer", headerOf(json, { purpose: OFFER_PURPOSE })],
    ["is no JSON", headerOf("{")],
    ["has no owners", headerOf("{}")],
    ["is nothing of the kind", "…"],
  ])("%s", (_name, header) => {
    expect(read(header)).toEqual({
      kind: "refused",
      reason: "its owners are not as the control plane signed them",
    });
  });
});
