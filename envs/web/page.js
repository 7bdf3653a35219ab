// Runs in every page before its own scripts: hands the live document over as a tree, and says
// whether a click has started a navigation. See chrome.py.
(() => {
  if (window !== window.top || window.__turnwise) return;
  const KEPT = ["id", "for", "name", "type", "href", "placeholder", "title", "alt", "role",
    "aria-label", "aria-hidden", "hidden", "disabled", "value"];
  const SKIPPED = new Set(["SCRIPT", "STYLE", "TEMPLATE", "NOSCRIPT", "svg", "SVG"]);
  const id = crypto.getRandomValues(new Uint32Array(2)).join("-");
  let pending = false;
  let controls = [];

  // Fields are validated by the site alone, so that both modes meet the same answers.
  document.addEventListener("DOMContentLoaded", () => {
    for (const form of document.forms) form.noValidate = true;
    for (const link of document.querySelectorAll("[target]")) link.removeAttribute("target");
  });
  window.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest("a[href]");
    const within = link && link.getAttribute("href").startsWith("#");
    if (link && !within && !event.defaultPrevented) pending = true;
  });
  window.addEventListener("submit", (event) => {
    if (!event.defaultPrevented) pending = true;
  });

  const isControl = (element) => {
    const tag = element.tagName;
    if (tag === "A") return element.hasAttribute("href");
    if (!["INPUT", "BUTTON", "SELECT", "TEXTAREA"].includes(tag)) return false;
    return !["hidden", "reset"].includes(element.type);
  };

  const attributes = (element) => {
    const found = {};
    for (const name of KEPT)
      if (element.hasAttribute(name)) found[name] = element.getAttribute(name);
    const tag = element.tagName;
    if (tag === "INPUT") {
      if (element.type === "checkbox" || element.type === "radio") {
        if (element.checked) found.checked = "";
      } else if (element.value !== "" || "value" in found) found.value = element.value;
    } else if (tag === "TEXTAREA") found.value = element.value;
    else if (tag === "OPTION" && element.selected) found.selected = "";
    return found;
  };

  const tree = (element) => {
    const found = attributes(element);
    if (!(element.checkVisibility ? element.checkVisibility() : true) && element.tagName !== "OPTION"
        && document.head !== element && !document.head.contains(element)) found.hidden = "";
    if ("hidden" in found || found["aria-hidden"] === "true")
      return [element.tagName.toLowerCase(), found, []];
    if (isControl(element)) controls.push(element);
    const children = [];
    if (!SKIPPED.has(element.tagName))
      for (const child of element.childNodes) {
        if (child.nodeType === Node.TEXT_NODE) children.push(child.data);
        else if (child.nodeType === Node.ELEMENT_NODE) children.push(tree(child));
      }
    return [element.tagName.toLowerCase(), found, children];
  };

  // As text: the browser's driver takes an object apart value by value, and a text as it is.
  const read = () => {
    controls = [];
    const url = location.pathname + location.search;
    return JSON.stringify({ id, url, tree: tree(document.documentElement) });
  };

  // Where on the page lies what stands between two elements, either of which may be none.
  const span = (before, after) => {
    const range = document.createRange();
    range.selectNodeContents(document.body);
    if (before) range.setStartAfter(before);
    if (after) range.setEndBefore(after);
    const boxes = [...range.getClientRects()].filter((box) => box.width && box.height);
    const top = Math.min(...boxes.map((box) => box.top));
    const bottom = Math.max(...boxes.map((box) => box.bottom));
    return boxes.length ? [top + window.scrollY, bottom + window.scrollY] : [0, 0];
  };

  const changed = (element) => {
    element.dispatchEvent(new Event("input", { bubbles: true }));
    element.dispatchEvent(new Event("change", { bubbles: true }));
    return read();
  };

  window.__turnwise = {
    read,
    // The page, once it is loaded; nothing as long as document `before` is being left, for the
    // answer is then the next document's to give.
    settled: (before) => new Promise((resolve) => {
      const ready = () => { if (id !== before || !pending) resolve(read()); };
      if (document.readyState === "complete") ready();
      else window.addEventListener("load", () => setTimeout(ready));
    }),
    // Where to press: the middle of the element, if it is what lies on top there.
    aim: (number) => {
      const element = controls[number];
      element.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
      const box = element.getClientRects()[0];
      if (!box || !box.width || !box.height) return null;
      const x = box.left + box.width / 2, y = box.top + box.height / 2;
      const hit = document.elementFromPoint(x, y);
      const label = hit && hit.closest("label");
      const met = hit && (element === hit || element.contains(hit) || hit.contains(element)
        || (label && label.control === element));
      return met ? { x, y, id } : null;
    },
    type: (number, text) => {
      const element = controls[number];
      const kind = element.tagName === "TEXTAREA" ? HTMLTextAreaElement : HTMLInputElement;
      element.focus({ preventScroll: true });
      Object.getOwnPropertyDescriptor(kind.prototype, "value").set.call(element, text);
      element.scrollIntoView({ block: "nearest", behavior: "instant" });
      return changed(element);
    },
    select: (number, option) => {
      controls[number].selectedIndex = option;
      controls[number].scrollIntoView({ block: "nearest", behavior: "instant" });
      return changed(controls[number]);
    },
    look: (number) => {
      if (number === null) window.scrollTo({ top: 0, behavior: "instant" });
      else controls[number].scrollIntoView({ block: "start", behavior: "instant" });
    },
    // What a picture of all between elements `before` and `after` must hold, and no less than one
    // screen: null is the beginning or the end of the page.
    frame: (before, after) => {
      const root = document.documentElement;
      const none = (number) => (number === null ? null : controls[number]);
      const [first, last] = span(none(before), none(after));
      const full = Math.max(root.scrollHeight, window.innerHeight);
      const top = before === null ? 0 : Math.min(first, full - window.innerHeight);
      const bottom = Math.max(last, top + window.innerHeight);
      const y = Math.floor(Math.max(top, 0));
      return { x: 0, y, width: root.clientWidth, height: Math.ceil(Math.min(bottom, full)) - y };
    },
  };
})();
