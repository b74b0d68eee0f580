/** Lines that are drawn over themselves at the bottom of a terminal. */
import type { Screen } from "./terminal.ts";
import { widthOf } from "./text.ts";

const ESC = "\u001b";

export class LiveArea {
  readonly #screen: Screen;
  #lines: readonly string[] = [];
  #open = false;
  readonly #onExit = (): void => {
    this.#send(`${ESC}[?25h`);
  };

  constructor(screen: Screen) {
    this.#screen = screen;
  }

  /** Hides the cursor. It comes back at `close`, and when the process ends without it. */
  open(): void {
    this.#open = true;
    process.on("exit", this.#onExit);
    this.#send(`${ESC}[?25l`);
  }

  /** Each line fits the terminal's width; together they are lower than it. */
  draw(lines: readonly string[]): void {
    if (!this.#open) return;
    const up = this.#rowsTaken();
    const back = up > 0 ? `\r${ESC}[${up}A` : "\r";
    const body = lines.map((line) => `${line}${ESC}[K\n`).join("");
    // One write, so that no half of a frame is ever seen.
    this.#send(`${back}${body}${ESC}[J`);
    this.#lines = lines;
  }

  /** Leaves the last frame on the screen. */
  close(): void {
    if (!this.#open) return;
    this.#open = false;
    process.off("exit", this.#onExit);
    this.#send(`${ESC}[?25h`);
  }

  /** A terminal that was made narrower has broken the lines of the last frame into several. */
  #rowsTaken(): number {
    const columns = Math.max(1, this.#screen.columns());
    return this.#lines.reduce((rows, line) => rows + Math.max(1, Math.ceil(widthOf(line) / columns)), 0);
  }

  #send(text: string): void {
    // A terminal that has gone is noticed by whoever writes the result.
    this.#screen.write(text).catch(() => undefined);
  }
}
