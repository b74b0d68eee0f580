/** Writes signatures into a file of documents, and leaves the rest of it as somebody wrote it. */
import { isDeepStrictEqual } from "node:util";
import { type Document, isMap, isNode, parseAllDocuments, stringify } from "yaml";
import type { Envelope } from "../../shared/provenance/dsse.ts";

type Signed = ReadonlyMap<string, readonly Envelope[]>;

/** `signed`: by the name of the pipeline. The text has passed the loader of documents. */
export function withSignatures(text: string, signed: Signed): string {
  const inPlace = editedText(text, signed);
  // What is written in braces, or in a way that was not thought of here, is written anew.
  return isDeepStrictEqual(valuesOf(inPlace), wantedOf(text, signed)) ? inPlace : writtenAnew(text, signed);
}

/** Takes the old list out and puts the new one behind the last line of the document. */
function editedText(text: string, signed: Signed): string {
  let edited = text;
  // From the end, so that positions before it stay what they are.
  for (const document of [...documentsOf(text)].reverse()) {
    const { contents } = document;
    const envelopes = signaturesFor(document, signed);
    if (envelopes === undefined || !isMap(contents) || contents.flow || !contents.range) continue;
    const end = contents.range[2];
    const block = stringify({ signatures: envelopes }, { lineWidth: 0 });
    const line = edited.slice(0, end).endsWith("\n") ? "" : "\n";
    edited = `${edited.slice(0, end)}${line}${block}${edited.slice(end)}`;
    const old = contents.items.find(({ key }) => isNode(key) && String(key) === "signatures");
    if (!old || !isNode(old.key) || !isNode(old.value) || !old.key.range || !old.value.range) continue;
    const [start, stop] = [old.key.range[0], old.value.range[2]];
    edited = `${edited.slice(0, start)}${edited.slice(stop)}`;
  }
  return edited;
}

function writtenAnew(text: string, signed: Signed): string {
  const wanted = wantedOf(text, signed);
  if (text.trimStart().startsWith("{") && wanted.length === 1)
    return `${JSON.stringify(wanted[0], null, 2)}\n`;
  return wanted
    .map((value) => stringify(value, { lineWidth: 0, aliasDuplicateObjects: false }))
    .join("---\n");
}

function wantedOf(text: string, signed: Signed): unknown[] {
  return documentsOf(text).map((document) => {
    const envelopes = signaturesFor(document, signed);
    const value: unknown = document.toJS();
    if (envelopes === undefined) return value;
    return { ...(value as object), signatures: envelopes };
  });
}

function valuesOf(text: string): unknown[] {
  const documents = documentsOf(text);
  return documents.some(({ errors }) => errors.length > 0)
    ? []
    : documents.map((document) => document.toJS());
}

function signaturesFor(document: Document, signed: Signed): readonly Envelope[] | undefined {
  if (!isMap(document.contents) || document.get("kind") !== "pipeline") return undefined;
  return signed.get(String(document.get("name")));
}

/** Those that are empty, before the first `---` for example, are none. */
function documentsOf(text: string): Document[] {
  const documents = parseAllDocuments(text);
  return Array.isArray(documents) ? documents.filter(({ contents }) => contents !== null) : [];
}
