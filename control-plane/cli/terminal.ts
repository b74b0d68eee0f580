/** Where the command line writes: data to stdout, everything else to stderr. */

export interface Screen {
  readonly isTty: boolean;
  columns(): number;
  rows(): number;
  /** Resolves when the reader has taken it: a slow pipe slows us, and memory stays bounded. */
  write(chunk: string | Uint8Array): Promise<void>;
  /** Returns what stops the watching. */
  onResize(fn: () => void): () => void;
}

export interface Terminal {
  /** Data: what a script reads. */
  readonly out: Screen;
  /** Progress, notes and errors. */
  readonly err: Screen;
  /** False with NO_COLOR, --no-color, or TERM=dumb. Colour also needs the stream to be a terminal. */
  readonly colorAllowed: boolean;
  /** Everything that was piped or typed in. */
  readStdin(): Promise<string>;
}

/** Narrow enough to break lines sensibly when nobody says how wide the terminal is. */
const DEFAULT_COLUMNS = 100;
const DEFAULT_ROWS = 24;

export function processTerminal(options: { colorAllowed: boolean }): Terminal {
  return {
    out: screenOf(process.stdout),
    err: screenOf(process.stderr),
    colorAllowed: options.colorAllowed,
    async readStdin() {
      const { text } = await import("node:stream/consumers");
      return text(process.stdin);
    },
  };
}

function screenOf(stream: NodeJS.WriteStream): Screen {
  return {
    get isTty() {
      return stream.isTTY === true;
    },
    columns: () => stream.columns || DEFAULT_COLUMNS,
    rows: () => stream.rows || DEFAULT_ROWS,
    write: (chunk) =>
      new Promise((resolve, reject) => {
        stream.write(chunk, (err) => (err ? reject(err) : resolve()));
      }),
    onResize(fn) {
      stream.on("resize", fn);
      return () => stream.off("resize", fn);
    },
  };
}
