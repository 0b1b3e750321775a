// Draws the figures that a page holds as data; without any, nothing is loaded.
(() => {
  const folder = document.currentScript.src.replace(/[^/]*$/, "");
  const colours = () => {
    const ink = getComputedStyle(document.body).color;
    return { "font.color": ink, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
  };
  const load = () =>
    new Promise((resolve, reject) => {
      const script = document.createElement("script");
      Object.assign(script, { src: `${folder}plotly.min.js`, onload: resolve, onerror: reject });
      document.head.append(script);
    });
  const draw = async () => {
    const places = [...document.querySelectorAll("div.interactive")];
    if (!places.length) return;
    await load();
    const look = { responsive: true, displaylogo: false, typesetMath: false };
    for (const place of places) {
      try {
        const { data, layout, frames } = JSON.parse(place.querySelector("script").textContent);
        await Plotly.newPlot(place, data, layout, look);
        if (frames) await Plotly.addFrames(place, frames);
        await Plotly.relayout(place, colours());
        place.dataset.drawn = "";
      } catch {
        place.textContent = `${place.getAttribute("aria-label")} (This figure cannot be drawn.)`;
      }
    }
    const drawn = places.filter((place) => "drawn" in place.dataset);
    new MutationObserver(() => drawn.forEach((place) => Plotly.relayout(place, colours()))).observe(
      document.documentElement, { attributeFilter: ["data-theme"] });
  };
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", draw);
  else draw();
})();
