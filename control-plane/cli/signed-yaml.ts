/** Writes signatures into a file of documents, and leaves the rest of it as somebody wrote it. */
import { isMap, parseAllDocuments } from "yaml";
import type { Envelope } from "../../shared/provenance/dsse.ts";

/** `signed`: by the name of the pipeline. The text has passed the loader of documents. */
export function withSignatures(text: string, signed: ReadonlyMap<string, readonly Envelope[]>): string {
  const json = text.trimStart().startsWith("{");
  const documents = parseAllDocuments(text, { keepSourceTokens: true });
  if (!Array.isArray(documents)) return text;
  const written = documents.map((document) => {
    if (!isMap(document.contents) || document.get("kind") !== "pipeline") return document;
    const envelopes = signed.get(String(document.get("name")));
    if (envelopes === undefined) return document;
    if (envelopes.length === 0) document.delete("signatures");
    else document.set("signatures", document.createNode(envelopes));
    return document;
  });
  if (json && written.length === 1) return `${JSON.stringify(written[0]?.toJS(), null, 2)}\n`;
  // The library ends each document of several by itself, and writes what separates them where directives were.
  return written
    .map((document, index) => {
      const body = document.toString({ lineWidth: 0, flowCollectionPadding: false });
      return index === 0 || body.startsWith("---") ? body : `---\n${body}`;
    })
    .join("");
}
