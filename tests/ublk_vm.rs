//! The ublk front end on real kernels: `tests/lab/ublk-drill` in an emulated machine.

mod lab;

fn drill(kernel: &str) -> String {
    lab::Run {
        kernel,
        modules: "ublk_drv",
        programs: &[lab::example("ublk_ram")],
        script: "ublk-drill",
        limit: 900,
    }
    .check()
}

/// With everything that a new driver offers.
#[test]
fn ublk_on_kernel_7() {
    let output = drill("7");
    assert!(output.contains("drill: passed"), "{output}");
    assert!(output.contains("try-stop true"), "{output}");
}

/// Without `TRY_STOP_DEV` and with a partition scan at every start.
#[test]
fn ublk_on_kernel_6_12() {
    let output = drill("6.12");
    assert!(output.contains("drill: passed"), "{output}");
    assert!(output.contains("try-stop false"), "{output}");
}
