/**
 * The forms in which a secret turns up in what programs print. Pure.
 *
 * Not all there are: a program can always print a secret so that nobody finds it. See docs/security/secrets.md.
 */

/** Shorter ones turn up by chance, and masking them would say where. */
export const SECRET_MIN_BYTES = 6;
/** What a shell shows of a key, line by line, is looked for when a line is at least so long. */
const LINE_MIN_BYTES = 8;
/** Widths at which `base64` and `openssl base64` break lines. */
const WRAP_CHARS = [76, 64];
/** Unreserved in RFC 3986. */
const UNRESERVED = /[A-Za-z0-9\-._~]/;

/** A secret without the line ends behind it, which programs print or leave out as they like. */
export function coreOf(value: Buffer): Buffer {
  let end = value.length;
  while (end > 0 && (value[end - 1] === 0x0a || value[end - 1] === 0x0d)) end--;
  return value.subarray(0, end);
}

/** Each once, none shorter than `SECRET_MIN_BYTES`. */
export function encodingsOf(value: Buffer): Buffer[] {
  const core = coreOf(value);
  const forms = [core, ...textForms(core), ...base64Forms(core), ...hexForms(core), ...lineForms(core)];
  const unique = new Map(forms.map((form) => [form.toString("latin1"), form]));
  return [...unique.values()].filter((form) => form.length >= SECRET_MIN_BYTES);
}

function textForms(core: Buffer): Buffer[] {
  const text = core.toString("utf8");
  const json = JSON.stringify(text).slice(1, -1);
  const ascii = json.replace(
    /[\u0080-\uffff]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
  const quoted = [text.replaceAll("'", "'\\''"), text.replaceAll("'", `'"'"'`)];
  const escaped = [json, json.replaceAll("/", "\\/"), ascii, ascii.replaceAll("/", "\\/")];
  // A JSON text in a JSON text, such as a log line that holds a request.
  const nested = escaped.map((form) => JSON.stringify(form).slice(1, -1));
  return [...quoted, ...escaped, ...nested, ...urlForms(core, text)].map((form) => Buffer.from(form));
}

function urlForms(core: Buffer, text: string): string[] {
  const percent = (kept: RegExp): string =>
    [...core]
      .map((byte) => {
        const char = String.fromCharCode(byte);
        return kept.test(char) ? char : `%${byte.toString(16).toUpperCase().padStart(2, "0")}`;
      })
      .join("");
  const strict = percent(UNRESERVED);
  const forms = [strict, percent(/[A-Za-z0-9\-._~/]/), encodeURIComponent(text), encodeURI(text)];
  const all = [...forms, ...forms.map((form) => form.replaceAll("%20", "+"))];
  return [...all, ...all.map((form) => form.replace(/%[0-9A-F]{2}/g, (code) => code.toLowerCase()))];
}

/**
 * Of each place that a secret can have in a group of three bytes, the characters that it alone decides: whatever stands
 * before and behind it, these are there.
 */
function base64Forms(core: Buffer): Buffer[] {
  const forms = [0, 1, 2].map((before) => {
    const text = Buffer.concat([Buffer.alloc(before), core, Buffer.alloc(3)]).toString("base64");
    return text.slice(Math.ceil((before * 8) / 6), Math.floor(((before + core.length) * 8) / 6));
  });
  const whole = core.toString("base64");
  const wrapped = WRAP_CHARS.filter((width) => whole.length > width).flatMap((width) => {
    const lines = whole.match(new RegExp(`.{1,${width}}`, "g")) ?? [];
    return [lines.join("\n"), lines.join("\r\n"), ...lines.filter((line) => line.length >= LINE_MIN_BYTES)];
  });
  // The usual texts to their end: what `printf` and what `echo` hand to base64.
  const line = Buffer.concat([core, Buffer.from("\n")]).toString("base64");
  const ends = [whole, whole.replace(/=+$/, ""), line, line.replace(/=+$/, "")];
  const all = [...forms, ...ends, ...wrapped];
  const url = all.map((form) => form.replaceAll("+", "-").replaceAll("/", "_"));
  return [...all, ...url].map((form) => Buffer.from(form));
}

function hexForms(core: Buffer): Buffer[] {
  const hex = core.toString("hex");
  return [Buffer.from(hex), Buffer.from(hex.toUpperCase())];
}

/** A key is often shown a line at a time: indented, numbered, or with other ends of lines. */
function lineForms(core: Buffer): Buffer[] {
  const lines = core.toString("latin1").split(/\r?\n/);
  if (lines.length < 2) return [];
  const long = lines.map((line) => line.trim()).filter((line) => line.length >= LINE_MIN_BYTES);
  return [...long, lines.join("\r\n"), lines.join("\n"), lines.join("")].map((form) =>
    Buffer.from(form, "latin1"),
  );
}
