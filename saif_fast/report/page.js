// Draws each figure when it comes near the view, in the colours of the theme.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function draw(figure) {
    const shown = JSON.parse(figure.querySelector("script").textContent);
    const plot = figure.querySelector(".plot");
    const options = { displayModeBar: false, responsive: true };
    Plotly.react(plot, themed(shown.data), themed(shown.layout), options).then(() => {
      figure.dataset.drawn = "";
    });
  }

  const seen = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) {
          seen.unobserve(entry.target);
          draw(entry.target);
        }
      }
    },
    { rootMargin: "800px" },
  );
  const figures = [...document.querySelectorAll(".figure")];
  figures.forEach((figure) => seen.observe(figure));
  dark.addEventListener("change", () => {
    figures.filter((figure) => "drawn" in figure.dataset).forEach(draw);
  });
  // On paper everything is in view.
  addEventListener("beforeprint", () => {
    figures.filter((figure) => !("drawn" in figure.dataset)).forEach(draw);
  });
})();
