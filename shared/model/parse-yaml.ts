/** YAML (and so JSON) texts as plain values with positions, within limits that hold before any work is done. */
import {
  Composer,
  type CST,
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  Lexer,
  LineCounter,
  type Node,
  type Pair,
  type ParsedNode,
  Parser,
  type YAMLParseError,
} from "yaml";
import { type DocumentError, type DocumentPath, type Position, pathText } from "./document-errors.ts";
import { formatSize } from "./units.ts";

export const DOCUMENT_MAX_BYTES = 4 * 1024 * 1024;
export const DEPTH_MAX = 32;
export const DOCUMENTS_PER_FILE_MAX = 1_000;
/** Values of one document, with every alias counted as what it stands for. */
export const VALUES_MAX = 1_000_000;

/** Each is looked up among all anchors before it. */
export const ALIASES_MAX = 1_000;
/** More than these are counted and not told. */
export const ERRORS_PER_DOCUMENT_MAX = 100;

export interface ParsedDocument {
  value: unknown;
  /** Where the value (or its key) is; where the nearest thing around it is, when it is not there. */
  locate(path: DocumentPath, on?: "key" | "value"): Position;
}

export interface ParsedFile {
  documents: ParsedDocument[];
  errors: DocumentError[];
}

/** Documents without an error, and the errors of the others. Empty documents are left out. */
export function parseYaml(file: string, text: string): ParsedFile {
  const bytes = Buffer.byteLength(text, "utf8");
  if (bytes > DOCUMENT_MAX_BYTES) {
    const message = `the file has ${formatSize(bytes)}; ${formatSize(DOCUMENT_MAX_BYTES)} are allowed`;
    return { documents: [], errors: [{ file, line: 1, column: 1, path: "", message, code: "limit.bytes" }] };
  }
  return new FileParser(file, text.replace(/^\uFEFF/, "")).parse();
}

class FileParser {
  readonly #file: string;
  readonly #text: string;
  readonly #lines = new LineCounter();
  readonly #errors: DocumentError[] = [];
  #unshown = 0;

  constructor(file: string, text: string) {
    this.#file = file;
    this.#text = text;
  }

  parse(): ParsedFile {
    const tokens = this.#tokens();
    if (tokens === null) return { documents: [], errors: this.#errors };
    // Keys are compared below: the composer's own comparison takes quadratic time.
    const composer = new Composer({ uniqueKeys: false, stringKeys: true, prettyErrors: false, merge: false });
    const documents: ParsedDocument[] = [];
    let count = 0;
    for (const document of composer.compose(tokens, false, this.#text.length)) {
      if (++count > DOCUMENTS_PER_FILE_MAX) {
        const at = document.range?.[0] ?? 0;
        this.#fail(at, `the file holds more than ${DOCUMENTS_PER_FILE_MAX} documents`, "limit.documents");
        break;
      }
      const parsed = this.#document(document);
      if (parsed !== null) documents.push(parsed);
    }
    if (documents.length === 0 && this.#errors.length === 0)
      this.#fail(0, "the file holds no document", "empty");
    if (this.#unshown > 0) {
      const message = `${this.#unshown} more errors in this file are not shown`;
      const at = this.#errors.at(-1) ?? { line: 1, column: 1 };
      this.#errors.push({
        file: this.#file,
        line: at.line,
        column: at.column,
        path: "",
        message,
        code: "limit.errors",
      });
    }
    return { documents, errors: this.#errors };
  }

  /** Null when it is too deep or too much: found while reading, as what comes after works by recursion. */
  #tokens(): CST.Token[] | null {
    const tokens: CST.Token[] = [];
    const parser = new Parser();
    this.#lines.addNewLine(0);
    for (let at = this.#text.indexOf("\n"); at >= 0; at = this.#text.indexOf("\n", at + 1)) {
      this.#lines.addNewLine(at + 1);
    }
    let scalars = 0;
    for (const lexeme of new Lexer().lex(this.#text)) {
      for (const token of parser.next(lexeme)) tokens.push(token);
      // On the stack are the document, the collections that are open, and perhaps a scalar.
      if (parser.stack.length > DEPTH_MAX + 2) {
        this.#fail(parser.offset, `the document is nested deeper than ${DEPTH_MAX} levels`, "limit.depth");
        return null;
      }
      if (SCALAR_STARTS.has(lexeme.charCodeAt(0)) && ++scalars > VALUES_MAX) {
        this.#fail(parser.offset, `the document has more than ${VALUES_MAX} values`, "limit.values");
        return null;
      }
    }
    for (const token of parser.end()) tokens.push(token);
    return tokens;
  }

  #document(document: Document.Parsed<ParsedNode>): ParsedDocument | null {
    for (const error of document.errors)
      this.#fail(error.pos[0], explainSyntax(error), error.code, error.pos[1]);
    if (document.errors.length > 0) return null;
    const { contents } = document;
    if (contents === null || (isScalar(contents) && contents.value === null)) return null;
    const before = this.#errors.length + this.#unshown;
    this.#checkNodes(contents);
    if (this.#errors.length + this.#unshown > before) return null;
    const value: unknown = document.toJS({ maxAliasCount: -1 }); // counted above, by what aliases stand for
    return { value, locate: (path, on = "value") => this.#locate(contents, path, on) };
  }

  /** Keys that are there twice, and aliases that stand for too much. The composer has bounded the depth. */
  #checkNodes(root: Node): void {
    const sizes = new Map<string, number>();
    let aliases = 0;
    let failed = false;
    const refuse = (node: Node, message: string): number => {
      if (!failed) this.#fail(startOf(node), message, "limit.aliases", endOf(node));
      failed = true;
      return 0;
    };
    const path: (string | number)[] = [];
    const visitAt = (part: string | number, node: unknown): number => {
      path.push(part);
      const size = visit(node);
      path.pop();
      return size;
    };
    const visit = (node: unknown): number => {
      if (failed) return 0;
      if (isAlias(node)) {
        if (++aliases > ALIASES_MAX) return refuse(node, `the document has more than ${ALIASES_MAX} aliases`);
        const size = sizes.get(node.source);
        return (
          size ??
          refuse(node, `the alias *${node.source} stands for nothing: no &${node.source} ends before it`)
        );
      }
      let size = 1;
      if (isSeq(node)) {
        for (const [index, item] of node.items.entries()) size += visitAt(index, item);
      } else if (isMap(node)) {
        const seen = new Map<string, Node>();
        for (const pair of node.items) {
          const key = keyOf(pair);
          this.#checkKey(key, pair.key as Node, seen, path);
          size += visitAt(key, pair.value);
        }
      }
      if (size > VALUES_MAX) {
        return refuse(node as Node, `the aliases of the document stand for more than ${VALUES_MAX} values`);
      }
      if ((isSeq(node) || isMap(node) || isScalar(node)) && node.anchor) sizes.set(node.anchor, size);
      return size;
    };
    visit(root);
  }

  #checkKey(key: string, node: Node, seen: Map<string, Node>, path: DocumentPath): void {
    const first = seen.get(key);
    if (first === undefined) seen.set(key, node);
    if (first === undefined && key !== "__proto__") return;
    const at = [startOf(node), endOf(node)] as const;
    const inside = pathText([...path, key]);
    if (first !== undefined) {
      const { line } = this.#at(startOf(first));
      this.#fail(
        at[0],
        `${inside} is written twice; it was first on line ${line}`,
        "key.twice",
        at[1],
        inside,
      );
    } else {
      this.#fail(at[0], `unknown key '${key}'`, "key.unknown", at[1], inside);
    }
  }

  #locate(root: Node, path: DocumentPath, on: "key" | "value"): Position {
    let node: Node = root;
    let key: Node | null = null;
    for (const part of path) {
      let next: unknown;
      key = null;
      if (isMap(node)) {
        const pair: Pair | undefined = node.items.find((item) => keyOf(item) === part);
        next = pair?.value ?? pair?.key;
        key = (pair?.key as Node | undefined) ?? null;
      } else if (isSeq(node) && typeof part === "number") {
        next = node.items[part];
      }
      // Missing, or behind an alias: what is around it is the nearest place.
      if (next === undefined || next === null) break;
      node = next as Node;
    }
    const found = on === "key" && key !== null ? key : node;
    const end = isMap(found) || isSeq(found) ? undefined : endOf(found);
    return this.#at(startOf(found), end);
  }

  #at(start: number, end = start + 1): Position {
    const { line, col } = this.#lines.linePos(start);
    const lineEnd = this.#lines.lineStarts[line] ?? this.#text.length + 1;
    return { line, column: col, length: Math.max(1, Math.min(end, lineEnd - 1) - start) };
  }

  #fail(offset: number, message: string, code: string, end?: number, path = ""): void {
    if (this.#errors.length >= ERRORS_PER_DOCUMENT_MAX) this.#unshown++;
    else this.#errors.push({ file: this.#file, ...this.#at(offset, end), path, message, code });
  }
}

/** Of the lexer: its mark of a plain or block scalar, and the two quotes. */
const SCALAR_STARTS: ReadonlySet<number> = new Set(["\u001f", "'", '"'].map((mark) => mark.charCodeAt(0)));

function keyOf(pair: Pair): string {
  return isScalar(pair.key) ? String(pair.key.value) : "";
}

function startOf(node: Node): number {
  return node.range?.[0] ?? 0;
}

function endOf(node: Node): number {
  return node.range?.[1] ?? startOf(node) + 1;
}

/** The library's message in our words where people meet it often. */
function explainSyntax(error: YAMLParseError): string {
  if (/^Missing closing .quote/.test(error.message)) return "a quote is opened and never closed";
  switch (error.code) {
    case "TAB_AS_INDENT":
      return "YAML is indented with spaces; here is a tab";
    case "NON_STRING_KEY":
      return "a key must be text";
    case "KEY_OVER_1024_CHARS":
      return "a key is longer than 1024 characters; is a quote or a ':' in the wrong place?";
    case "MULTILINE_IMPLICIT_KEY":
    case "BLOCK_AS_IMPLICIT_KEY":
      return "a value cannot start here; is a text with ': ' in it not in quotes, or the line above not finished?";
    default:
      return `not valid YAML: ${lowered(error.message)}`;
  }
}

function lowered(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1);
}
