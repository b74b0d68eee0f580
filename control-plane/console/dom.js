/** Small trees of elements, and a way to bring the page up to date without losing focus, selection or scroll. */

/** `h("a.quiet", { href }, "text", other)`; what is null or false is left out. */
export function h(tag, props, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length > 0) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value !== null && value !== undefined && value !== false)
      element.setAttribute(key, value === true ? "" : value);
  }
  element.append(
    ...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

const SVG = "http://www.w3.org/2000/svg";
const SHAPES = {
  succeeded: "M4 8.5l2.7 2.7L12 5.5",
  failed: "M5 5l6 6M11 5l-6 6",
  running: "M8 3a5 5 0 1 1-5 5",
  waiting: "M8 4.5V8l2.3 1.6M8 2.5a5.5 5.5 0 1 0 0 11a5.5 5.5 0 1 0 0-11",
  stopped: "M5 5h6v6H5z",
  idle: "M5 8h6",
};

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("class", `icon ${name}`);
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", SHAPES[name]);
  svg.append(path);
  return svg;
}

/** Makes `now` equal to `next`, keeping every node that can stay. `data-keep` marks what is filled elsewhere. */
export function patch(now, next) {
  for (const { name } of [...now.attributes]) if (!next.hasAttribute(name)) now.removeAttribute(name);
  for (const { name, value } of next.attributes)
    if (now.getAttribute(name) !== value) now.setAttribute(name, value);
  if (now.hasAttribute("data-keep")) return;
  const wanted = [...next.childNodes];
  wanted.forEach((child, i) => {
    const there = now.childNodes[i];
    if (there === undefined) now.append(child);
    else if (!alike(there, child)) there.replaceWith(child);
    else if (child.nodeType === Node.TEXT_NODE) {
      if (there.data !== child.data) there.data = child.data;
    } else patch(there, child);
  });
  while (now.childNodes.length > wanted.length) now.lastChild.remove();
}

const alike = (a, b) =>
  a.nodeName === b.nodeName && (a.nodeType !== Node.ELEMENT_NODE || a.dataset?.key === b.dataset?.key);
