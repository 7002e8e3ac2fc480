"use strict";
(() => {
  const root = document.documentElement, tip = document.createElement("div");
  tip.className = "tip";
  document.body.append(tip);

  // what is under the pointer, in words
  const tell = (event) => {
    const told = event.target.closest ? event.target.closest("[data-tip]") : null;
    if (!told) { tip.style.opacity = 0; return; }
    tip.textContent = told.dataset.tip;
    const wide = tip.offsetWidth, high = tip.offsetHeight;
    tip.style.left = Math.max(8, Math.min(event.clientX + 14, innerWidth - wide - 8)) + "px";
    tip.style.top = Math.max(8, event.clientY - high - 12) + "px";
    tip.style.opacity = 1;
  };
  for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, tell);
  for (const title of document.querySelectorAll("[data-tip] > title")) title.remove(); // the browser's own would come on top

  document.querySelector(".theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // slots over text: a slot lights the tokens it is written from or read by, a token lights the slots
  const results = JSON.parse(document.getElementById("probe-data").textContent);
  for (const figure of document.querySelectorAll("[data-slots]")) {
    const maps = results[+figure.dataset.slots].probes.slots.result.maps;
    const words = [...figure.querySelectorAll(".tokens span")], slots = [...figure.querySelectorAll(".slots button")];
    const kinds = [...figure.querySelectorAll(".choice button")];
    let chosen = null, kind = "write";
    const press = (buttons, one) => buttons.forEach((b) => b.setAttribute("aria-pressed", b === one));
    const share = (slot, word) => {
      const map = maps[+word.dataset.map], rows = map[kind];
      return rows ? rows[slot][+word.dataset.at] : 0;
    };
    const paint = (slot) => {
      const all = words.map((word) => slot === null ? Math.max(...slots.map((_, s) => share(s, word))) : share(slot, word));
      const most = Math.max(...all, 1e-9);
      words.forEach((word, i) => word.style.setProperty("--w", all[i] / most));
    };
    const light = (word) => slots.forEach((button, s) => button.style.setProperty("--w", word ? share(s, word) / Math.max(...slots.map((_, t) => share(t, word)), 1e-9) : 0));
    slots.forEach((button, s) => {
      button.addEventListener("pointerenter", () => paint(s));
      button.addEventListener("pointerleave", () => paint(chosen));
      button.addEventListener("click", () => { chosen = chosen === s ? null : s; press(slots, chosen === null ? null : button); paint(chosen); });
    });
    kinds.forEach((button) => button.addEventListener("click", () => { kind = button.value; press(kinds, button); paint(chosen); }));
    words.forEach((word) => {
      word.addEventListener("pointerenter", () => {
        const all = slots.map((_, s) => share(s, word)), best = all.indexOf(Math.max(...all));
        word.dataset.tip = `${kind === "write" ? "writes most to" : "reads most from"} slot ${best + 1}: ${(100 * all[best]).toPrecision(3)} %`;
        light(word);
      });
      word.addEventListener("pointerleave", () => light(null));
    });
    paint(null);
  }

  document.querySelector(".save").addEventListener("click", (event) => {
    event.preventDefault();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([document.getElementById("probe-data").textContent], { type: "application/json" }));
    link.download = "probe.json";
    link.click();
    URL.revokeObjectURL(link.href);
  });
})();
