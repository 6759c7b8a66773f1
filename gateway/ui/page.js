// Marks and rows of one item light up together; the filter leaves those that hold its words.
(() => {
  const light = (target, on) => {
    const item = target.closest && target.closest("[data-item]");
    const result = item && item.closest(".ll-result");
    if (!result) return;
    for (const each of result.querySelectorAll(`[data-item="${item.dataset.item}"]`))
      each.classList.toggle("ll-lit", on);
  };
  for (const [name, on] of [["mouseover", true], ["mouseout", false], ["focusin", true], ["focusout", false]])
    document.addEventListener(name, (event) => light(event.target, on));
  document.addEventListener("click", (event) => {
    const row = event.target.closest && event.target.closest("tr[data-item]");
    const result = row && row.closest(".ll-result");
    const mark = result && result.querySelector(`.ll-stage [data-item="${row.dataset.item}"]`);
    if (mark) mark.scrollIntoView({ block: "nearest", behavior: "smooth" });
  });
  document.addEventListener("input", (event) => {
    if (!event.target.matches || !event.target.matches(".ll-filter")) return;
    const result = event.target.closest(".ll-result");
    const words = event.target.value.toLowerCase();
    for (const row of result.querySelectorAll("tr[data-item]")) {
      const hidden = !row.textContent.toLowerCase().includes(words);
      for (const each of result.querySelectorAll(`[data-item="${row.dataset.item}"]`))
        each.classList.toggle("ll-hidden", hidden);
    }
  });
  // Gradio's files are members of no list, which those who hear the page cannot make sense of.
  new MutationObserver(() => {
    for (const member of document.querySelectorAll("[role=listitem]"))
      if (!member.closest("[role=list]")) member.setAttribute("role", "group");
  }).observe(document, { childList: true, subtree: true });
  const theme = localStorage.getItem("loraline-theme");
  if (theme === "dark" || theme === "light") {
    const set = () => document.body && document.body.classList.toggle("dark", theme === "dark");
    document.addEventListener("DOMContentLoaded", set);
    // Gradio sets the machine's theme when it has loaded.
    new MutationObserver((_, seen) => {
      if (document.querySelector(".gradio-container")) { set(); seen.disconnect(); }
    }).observe(document, { childList: true, subtree: true });
  }
})();
